package evict

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"postern.dev/postern/operator/selection"
)

// How fast pods are replaced.
const (
	maxAtOnce    = 5                // owners whose new pods are waited for
	maxInStep    = 5                // evictions in one step
	stepTime     = time.Second      // between steps while there is something to do
	replaceTime  = 2 * time.Minute  // an owner that has made no new pod by then does not want one
	firstBackoff = 5 * time.Second  // after an eviction that was refused
	lastBackoff  = 5 * time.Minute  // at most
	evictTimeout = 10 * time.Second // of one request
)

// What is done about an owner whose new pods are no better: it is tried once more after a while,
// since the webhook may have been away for just that moment, and then never again for the same aim.
const (
	maxStrikes = 2
	strikeTime = time.Minute
)

// How often the webhook is asked whether it is asked.
const (
	proofTime    = 30 * time.Second // so long an answer is good
	disproofTime = 10 * time.Second // until it is asked again after none
)

// Events of pods, for whoever looks at the Proxy or the pod.
const (
	EventEvicted      = "Evicted"
	EventNoController = ReasonNoController
	EventNotInjected  = ReasonNotInjected
	EventBlocked      = ReasonEvictionBlocked
)

// Config is what an Evictor works with.
type Config struct {
	Rules selection.Rules
	// Evict asks the Eviction API to evict a pod, on condition that it has this UID. It returns the
	// API's errors as they are.
	Evict func(ctx context.Context, pod *corev1.Pod) error
	// Probe finds out whether the API server asks the webhook about new pods; an error says why not.
	// No pod is evicted in vain as long as it does not. It may be nil; then nobody knows.
	Probe func(ctx context.Context) error
	// Event tells what happened, once for each pod. It may be nil.
	Event func(proxy selection.Key, pod *corev1.Pod, reason, message string)
	Log   *slog.Logger
}

// Evictor replaces pods, step by step. It is not safe for concurrent use.
type Evictor struct {
	cfg     Config
	probed  time.Time // when the webhook was last probed
	broken  error     // why it is not asked, as of then
	owners  map[types.UID]*owner
	refused map[types.UID]*refusal // by pod
	told    map[types.UID]string   // by pod: the reason of its last event
}

// owner is what is remembered of one that makes pods.
type owner struct {
	waiting bool               // for a new pod
	since   time.Time          // when the last one was evicted
	known   map[types.UID]bool // the pods that it had then
	want    place              // where the new pod is to be, and what it is to have
	strikes int                // new pods that were no better, one after the other
	struck  time.Time          // when the last of them was seen
	seen    bool               // in this step
}

// refusal is an eviction that did not happen.
type refusal struct {
	times  int
	until  time.Time
	reason string
}

// New returns an evictor that remembers nothing.
func New(cfg Config) *Evictor {
	return &Evictor{
		cfg:    cfg,
		owners: make(map[types.UID]*owner), refused: make(map[types.UID]*refusal), told: make(map[types.UID]string),
	}
}

// Step looks at all pods and all Proxies, evicts a few pods, and returns a report for each Proxy and
// when to take the next step at the latest; zero means that only a change makes one necessary.
func (e *Evictor) Step(ctx context.Context, now time.Time, pods []*corev1.Pod, proxies []selection.Proxy) (map[selection.Key]*Report, time.Duration) {
	s := e.survey(ctx, now, pods, proxies)
	evicted := 0
	for _, g := range s.groups {
		i := slices.IndexFunc(g.affected, func(c candidate) bool { return e.may(ctx, s, g, c) })
		if i >= 0 && evicted < maxInStep && ctx.Err() == nil {
			e.evict(ctx, s, g, g.affected[i])
			evicted++
		}
	}
	s.conclude(e)
	e.forget(s)
	return s.reports, s.next(ctx, e)
}

// may reports whether a pod may be evicted in this step.
func (e *Evictor) may(ctx context.Context, s *survey, g *group, c candidate) bool {
	o := e.owners[g.uid]
	if o.waiting || s.waiting >= maxAtOnce || e.stuck(s, o, c) {
		return false
	}
	if r := e.refused[c.pod.UID]; r != nil && s.now.Before(r.until) {
		return false
	}
	// A pod that is not ready serves nobody. Of those that are, none goes while another one of the
	// same owner is missing or not ready, or was refused.
	if ready(c.pod) && (g.unready > 0 || g.terminating > 0 || e.holds(s, g)) {
		return false
	}
	if c.want == nil {
		return true
	}
	// The first of a kind goes alone, to see whether its new pod is any better.
	if there := c.place(); s.doubtful[there] || s.trying[there] && !s.proven[there] {
		return false
	}
	return c.want.Serving && e.works(ctx, s.now)
}

// works reports whether the webhook is asked about new pods.
func (e *Evictor) works(ctx context.Context, now time.Time) bool {
	if e.cfg.Probe == nil {
		return true
	}
	good := proofTime
	if e.broken != nil {
		good = disproofTime
	}
	if !e.probed.IsZero() && now.Sub(e.probed) < good {
		return e.broken == nil
	}
	ctx, cancel := context.WithTimeout(ctx, evictTimeout)
	defer cancel()
	before := e.broken
	e.probed, e.broken = now, e.cfg.Probe(ctx)
	switch {
	case e.broken != nil && before == nil:
		e.cfg.Log.Warn("the API server does not ask the webhook about new pods", "error", e.broken)
	case e.broken == nil && before != nil:
		e.cfg.Log.Info("the API server asks the webhook again")
	}
	return e.broken == nil
}

// holds reports whether the eviction of a sibling was refused a short time ago.
func (e *Evictor) holds(s *survey, g *group) bool {
	return slices.ContainsFunc(g.affected, func(c candidate) bool {
		r := e.refused[c.pod.UID]
		return r != nil && s.now.Before(r.until)
	})
}

// stuck reports whether a pod's owner makes pods that are no better, so that evicting it is in vain.
func (e *Evictor) stuck(s *survey, o *owner, c candidate) bool {
	if o.strikes == 0 || c.place() != o.want {
		return false
	}
	return o.strikes >= maxStrikes || s.now.Sub(o.struck) < strikeTime
}

// evict evicts a pod, and remembers what came of it.
func (e *Evictor) evict(ctx context.Context, s *survey, g *group, c candidate) {
	request, cancel := context.WithTimeout(ctx, evictTimeout)
	defer cancel()
	err := e.cfg.Evict(request, c.pod)
	name := podName(c.pod)
	switch {
	case err == nil:
		o := e.owners[g.uid]
		if o.want != c.place() {
			o.strikes = 0
		}
		o.waiting, o.since, o.want, o.known = true, s.now, c.place(), g.uids
		s.waiting++
		s.trying[o.want] = true
		delete(e.refused, c.pod.UID)
		e.cfg.Log.Info("evicted a pod", "pod", name, "proxy", c.about.String(), "wants", o.want.target.route)
		e.tell(c, EventEvicted, "evicted pod "+name+": "+c.why())
		return
	case apierrors.IsNotFound(err), apierrors.IsConflict(err), ctx.Err() != nil:
		return // it is gone, or another one has its name, or the operator ends
	}
	r := e.refused[c.pod.UID]
	if r == nil {
		r = &refusal{}
		e.refused[c.pod.UID] = r
	}
	r.until = s.now.Add(min(firstBackoff<<min(r.times, 10), lastBackoff))
	r.times++
	r.reason = explain(err)
	e.cfg.Log.Debug("a pod was not evicted", "pod", name, "proxy", c.about.String(), "error", err)
	e.tell(c, EventBlocked, "pod "+name+" cannot be evicted: "+r.reason)
}

// explain says why an eviction was refused; the API server names the budget in a cause.
func explain(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		s := status.Status()
		var causes []string
		if s.Details != nil {
			for _, c := range s.Details.Causes {
				if c.Type == "DisruptionBudget" { // the type has a name in package policy only
					causes = append(causes, c.Message)
				}
			}
		}
		if len(causes) > 0 {
			return strings.TrimRight(strings.Join(causes, "; "), ".")
		}
	}
	return strings.TrimRight(err.Error(), ".")
}

func (e *Evictor) tell(c candidate, reason, message string) {
	if e.cfg.Event == nil || e.told[c.pod.UID] == reason {
		return
	}
	e.told[c.pod.UID] = reason
	e.cfg.Event(c.about.Key, c.pod, reason, message)
}

// forget drops what is remembered of pods and owners that are gone.
func (e *Evictor) forget(s *survey) {
	for uid := range e.refused {
		if !s.affected[uid] {
			delete(e.refused, uid)
		}
	}
	for uid := range e.told {
		if !s.affected[uid] {
			delete(e.told, uid)
		}
	}
	for uid, o := range e.owners {
		if !o.seen && s.now.Sub(o.since) > replaceTime && s.now.Sub(o.struck) > replaceTime {
			delete(e.owners, uid)
		}
	}
}

func podName(pod *corev1.Pod) string { return pod.Namespace + "/" + pod.Name }
