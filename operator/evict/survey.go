package evict

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"postern.dev/postern/operator/selection"
)

// survey is what one step sees.
type survey struct {
	now      time.Time
	groups   []*group
	affected map[types.UID]bool // pods that are not as they should be
	reports  map[selection.Key]*Report
	proven   map[place]bool // where there is a pod as it should be
	trying   map[place]bool // where a new pod is waited for
	doubtful map[place]bool // where new pods are no better than the old ones
	waiting  int            // owners whose new pods are waited for
}

// place is a namespace, and what its pods are to have.
type place struct {
	namespace string
	target    target
}

// target is what pods are pointed to: nothing, or an agent by way of a Proxy.
type target struct{ route, agent string }

// group is the pods of one owner.
type group struct {
	uid         types.UID
	name        string // of the owner, for people
	affected    []candidate
	uids        map[types.UID]bool // of all its pods
	terminating int
	unready     int // pods that are as they should be, but not ready
	fine        int // pods that are as they should be
}

// candidate is a pod that is not as it should be.
type candidate struct {
	pod *corev1.Pod
	judgement
}

// place says where the pod is, and what it is to have.
func (c candidate) place() place { return place{c.pod.Namespace, c.target()} }

// target is what the pod is to have.
func (j judgement) target() target {
	if j.want == nil {
		return target{}
	}
	return target{j.want.Route(), j.want.Agent}
}

// why says why a pod is replaced.
func (c candidate) why() string {
	route, agent := selection.Injected(c.pod)
	switch {
	case c.want == nil:
		return fmt.Sprintf("the Proxy %s does not select it any more", c.about.Route())
	case route == "":
		return fmt.Sprintf("the Proxy %s selects it, and it was made without", c.want.Route())
	case route == c.want.Route():
		return fmt.Sprintf("it goes to agent %s, and the Proxy %s to agent %s", agent, route, c.want.Agent)
	default:
		return fmt.Sprintf("it goes through the Proxy %s, and belongs to %s", route, c.want.Route())
	}
}

// survey looks at everything once.
func (e *Evictor) survey(ctx context.Context, now time.Time, pods []*corev1.Pod, proxies []selection.Proxy) *survey {
	s := &survey{
		now: now, affected: make(map[types.UID]bool), proven: make(map[place]bool), trying: make(map[place]bool), doubtful: make(map[place]bool),
		reports: make(map[selection.Key]*Report, len(proxies)),
	}
	for _, p := range proxies {
		s.reports[p.Key] = &Report{Proxy: p.Key}
	}
	pods = slices.SortedFunc(slices.Values(pods), func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	groups := make(map[types.UID]*group)
	for _, pod := range pods {
		j := judge(e.cfg.Rules, pod, proxies)
		s.note(pod, j)
		if j.want != nil && !j.affected {
			s.proven[place{pod.Namespace, j.target()}] = true
		}
		if owner := remaker(pod); owner != nil {
			g := groups[owner.UID]
			if g == nil {
				g = &group{uid: owner.UID, name: fmt.Sprintf("%s %s/%s", owner.Kind, pod.Namespace, owner.Name), uids: make(map[types.UID]bool)}
				groups[owner.UID] = g
				s.groups = append(s.groups, g)
			}
			g.add(pod, j)
		} else if j.affected {
			s.orphan(e, candidate{pod, j})
		}
	}
	for _, o := range e.owners {
		o.seen = false
	}
	for _, g := range s.groups {
		e.observe(ctx, s, g)
	}
	for _, o := range e.owners {
		if o.waiting && now.Sub(o.since) > replaceTime {
			o.waiting = false
		}
		if o.waiting {
			s.waiting++
			s.trying[o.want] = true
		}
	}
	return s
}

// add takes a pod into the group. Those that are not ready are the first to be evicted.
func (g *group) add(pod *corev1.Pod, j judgement) {
	g.uids[pod.UID] = true
	switch {
	case pod.DeletionTimestamp != nil:
		g.terminating++
	case finished(pod):
	case j.affected && ready(pod):
		g.affected = append(g.affected, candidate{pod, j})
	case j.affected:
		g.affected = slices.Insert(g.affected, 0, candidate{pod, j})
	default:
		g.fine++
		if !ready(pod) {
			g.unready++
		}
	}
}

// note counts a pod in the reports.
func (s *survey) note(pod *corev1.Pod, j judgement) {
	if j.about == nil {
		return
	}
	r := s.reports[j.about.Key]
	if j.want != nil {
		r.Pods++
	}
	if !slices.Contains(r.Namespaces, pod.Namespace) {
		r.Namespaces = append(r.Namespaces, pod.Namespace)
	}
	route, _ := selection.Injected(pod)
	for key, other := range s.reports {
		if key.Route() == route {
			other.Injected++
		}
	}
	for _, loser := range j.others {
		c := Conflict{Pod: podName(pod), Winner: j.want.Key, Loser: loser.Key}
		r.Conflicts = append(r.Conflicts, c)
		s.reports[loser.Key].Conflicts = append(s.reports[loser.Key].Conflicts, c)
	}
	if j.affected {
		s.affected[pod.UID] = true
	}
}

func (s *survey) orphan(e *Evictor, c candidate) {
	r := s.reports[c.about.Key]
	r.Orphans = append(r.Orphans, podName(c.pod))
	e.tell(c, EventNoController, "pod "+podName(c.pod)+" is left as it is, since nobody would make it again: "+c.why())
}

// observe looks at what an owner did since one of its pods was evicted.
func (e *Evictor) observe(ctx context.Context, s *survey, g *group) {
	o := e.owners[g.uid]
	if o == nil {
		o = &owner{}
		e.owners[g.uid] = o
	}
	o.seen = true
	if g.fine > 0 && len(g.affected) == 0 {
		o.strikes = 0 // all is well again, whoever did it
	}
	if o.waiting {
		e.compare(ctx, s, g, o)
	}
	if o.strikes > 0 {
		for _, c := range g.affected {
			if c.want != nil && e.stuck(s, o, c) {
				s.doubtful[c.place()] = true
			}
		}
	}
}

// compare looks whether an owner has made a new pod, and whether that is better than the old one.
func (e *Evictor) compare(ctx context.Context, s *survey, g *group, o *owner) {
	worse := slices.IndexFunc(g.affected, func(c candidate) bool { return !o.known[c.pod.UID] && c.place() == o.want })
	if worse < 0 {
		if g.newcomer(o) {
			o.waiting, o.strikes = false, 0
		}
		return
	}
	o.waiting = false
	c := g.affected[worse]
	e.probed = time.Time{} // what was known of the webhook may be out of date
	if c.want != nil && !e.works(ctx, s.now) {
		return // that explains it, and will end
	}
	o.strikes++
	o.struck = s.now
	e.cfg.Log.Warn("a new pod is not as it should be", "pod", podName(c.pod), "owner", g.name, "wants", o.want.target.route)
	e.tell(c, EventNotInjected, "pod "+podName(c.pod)+" was made anew and is no better: "+c.why())
}

// newcomer reports whether there is a pod that was not there when the last one was evicted.
func (g *group) newcomer(o *owner) bool {
	for uid := range g.uids {
		if !o.known[uid] {
			return true
		}
	}
	return false
}

// conclude counts what is left to do.
func (s *survey) conclude(e *Evictor) {
	for _, g := range s.groups {
		o, told := e.owners[g.uid], false
		for _, c := range g.affected {
			r := s.reports[c.about.Key]
			refused := e.refused[c.pod.UID]
			switch {
			case o.strikes > 0 && c.place() == o.want:
				if !told {
					r.Stuck = append(r.Stuck, Obstacle{g.name, stuckReason})
				}
				told = true
				continue
			case c.want != nil && !c.want.Serving:
				r.Held = true
			case c.want != nil && e.cfg.Probe != nil && e.broken != nil:
				r.Webhook = e.broken.Error()
			case refused != nil:
				r.Blocked = append(r.Blocked, Obstacle{podName(c.pod), refused.reason})
			}
			r.Pending++
		}
	}
	for _, r := range s.reports {
		slices.Sort(r.Namespaces)
	}
}

// stuckReason is for people.
const stuckReason = "they are not as the Proxy wants them, though the webhook works; " +
	"something takes its changes away, or the webhook's configuration leaves them out. Restart it when that is repaired"

// next is when to look again, if nothing changes before.
func (s *survey) next(ctx context.Context, e *Evictor) time.Duration {
	var next time.Duration
	sooner := func(d time.Duration) {
		if d = max(d, stepTime); next == 0 || d < next {
			next = d
		}
	}
	for _, o := range e.owners {
		if o.waiting {
			sooner(replaceTime - s.now.Sub(o.since))
		}
	}
	for _, g := range s.groups {
		o := e.owners[g.uid]
		for _, c := range g.affected {
			r := e.refused[c.pod.UID]
			switch {
			case r != nil:
				sooner(r.until.Sub(s.now))
			case c.want != nil && e.broken != nil:
				sooner(disproofTime - s.now.Sub(e.probed))
			case o.strikes > 0 && o.strikes < maxStrikes:
				sooner(strikeTime - s.now.Sub(o.struck))
			case e.may(ctx, s, g, c):
				sooner(stepTime) // there was no room for it in this step
			}
		}
	}
	return next
}
