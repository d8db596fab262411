package identitytoken

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/controlplane"
)

// What is on the Secrets.
const (
	labelManagedBy = "app.kubernetes.io/managed-by"
	managedBy      = "postern-operator"
	labelComponent = "app.kubernetes.io/component"
	component      = "identity-token"

	annotationSubject = "identity.postern.dev/subject"
	annotationPlane   = "identity.postern.dev/control-plane"
	annotationIssued  = "identity.postern.dev/issued"
	annotationExpires = "identity.postern.dev/expires"
)

// Times of a Keeper.
const (
	look      = 15 * time.Second // how often it is looked what is due
	unusedFor = 10 * time.Minute // before a Secret that no pod mounts is deleted
	firstWait = 5 * time.Second  // after a failure; each further one doubles it
	longWait  = 5 * time.Minute
	askTime   = 20 * time.Second // for one token
	atOnce    = 4                // tokens that are asked for at the same time
)

// Issuer makes identity tokens; *api.Client does.
type Issuer interface {
	CreateIdentityToken(ctx context.Context, org string, t api.CreateIdentityToken) (api.IdentityToken, error)
}

// Config says for whom a Keeper keeps tokens.
type Config struct {
	Reader client.Reader // of pods and Secrets
	Writer client.Writer // of Secrets
	Issuer func(ctx context.Context) (Issuer, error)
	// Published returns the IDs of the keys with which tokens of an issuer, given by its name, verify
	// now. It is asked now and then, and tokens of a key that is not there are renewed. It may be nil.
	Published func(ctx context.Context, issuer string) (map[string]bool, error)
	// Event tells what whoever looks at a pod has to know. It may be nil.
	Event        func(pod *corev1.Pod, kind, reason, message string)
	Organization string
	ControlPlane controlplane.Ref // Space and Group are for subjects that are scoped to a group; both may be empty
	Audiences    []string         // of pods that name none; none: the issuer alone accepts the token
	Covers       func(namespace string) bool
	Metrics      *Metrics // nil: none
	Log          *slog.Logger
	Now          func() time.Time // nil: time.Now
}

// Keeper keeps the Secrets that pods mount. Run it in one operator at a time; Ensure may be
// called in all. It is safe for concurrent use.
type Keeper struct {
	c Config

	mu      sync.Mutex
	failed  map[key]failure   // by Secret
	unused  map[key]time.Time // Secrets that no pod mounts, since when
	changed chan struct{}     // holds one if pods changed

	// Of the sweeps alone, of which there is one at a time.
	told      map[topic]saying // what pods that are there were told last
	published publishedState   // what is known of the issuer's keys
}

// key is a Secret.
type key = types.NamespacedName

// failure is how often in a row a token could not be had, and when it is tried again.
type failure struct {
	times int
	again time.Time
	text  string
}

// NewKeeper returns a Keeper.
func NewKeeper(c Config) *Keeper {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Keeper{
		c: c, failed: make(map[key]failure), unused: make(map[key]time.Time), changed: make(chan struct{}, 1), told: make(map[topic]saying),
	}
}

// Changed tells that pods were made or went.
func (k *Keeper) Changed() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// NeedLeaderElection has the manager run one Keeper only.
func (k *Keeper) NeedLeaderElection() bool { return true }

// Start keeps the Secrets until ctx ends.
func (k *Keeper) Start(ctx context.Context) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		if err := k.Sweep(ctx); err != nil && ctx.Err() == nil {
			k.c.Log.Error("identity tokens are not looked after; will try again", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-k.changed:
		}
	}
}

// Sweep does once what is due: asks for tokens that pods want and do not have, that are at half of
// their life or are good for nothing any more, and deletes Secrets that no pod has mounted for a
// while. It is called by one goroutine at a time.
func (k *Keeper) Sweep(ctx context.Context) error {
	wanted, err := k.wanted(ctx)
	if err != nil {
		return err
	}
	var secrets corev1.SecretList
	if err := k.c.Reader.List(ctx, &secrets, client.MatchingLabels{labelManagedBy: managedBy, labelComponent: component}); err != nil {
		return fmt.Errorf("list Secrets: %w", err)
	}
	have := make(map[key]*corev1.Secret, len(secrets.Items))
	for i := range secrets.Items {
		have[client.ObjectKeyFromObject(&secrets.Items[i])] = &secrets.Items[i]
	}
	k.renew(ctx, wanted, have, k.spoiled(ctx, wanted, have))
	k.count(wanted, have)
	k.tellFailures(wanted)
	return k.tidy(ctx, wanted, have)
}

// demand is a token that pods want.
type demand struct {
	Want
	pods []*corev1.Pod // that do
}

// wanted returns the tokens that pods want.
func (k *Keeper) wanted(ctx context.Context) (map[key]demand, error) {
	var pods corev1.PodList
	if err := k.c.Reader.List(ctx, &pods); err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	wanted := make(map[key]demand)
	for i := range pods.Items {
		pod := &pods.Items[i]
		if !k.c.Covers(pod.Namespace) || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		w, ok, err := WantOf(pod)
		k.tellPod(pod, w, ok, err)
		if ok {
			at := key{Namespace: pod.Namespace, Name: w.SecretName()}
			wanted[at] = demand{Want: w, pods: append(wanted[at].pods, pod)}
		}
	}
	k.forgetTold(pods.Items)
	return wanted, nil
}

// renew asks for the tokens that are due, a few at a time.
func (k *Keeper) renew(ctx context.Context, wanted map[key]demand, have map[key]*corev1.Secret, spoiled map[key]bool) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	now := k.c.Now()
	for _, at := range slices.SortedFunc(maps.Keys(wanted), func(a, b key) int { return strings.Compare(a.String(), b.String()) }) {
		if !k.due(at, have[at], spoiled[at], now) {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			_ = k.refresh(ctx, at, wanted[at].Want, have[at]) // told and tried again
		})
	}
	wg.Wait()
}

// due reports whether a token has to be asked for now. One that is spoiled is of no use any more.
func (k *Keeper) due(at key, s *corev1.Secret, spoiled bool, now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f, ok := k.failed[at]; ok && now.Before(f.again) {
		return false
	}
	return s == nil || spoiled || !now.Before(renewAt(s))
}

// renewAt returns when a token is renewed: at half of its life, or up to a tenth earlier, so
// that those that were made together are not renewed together.
func renewAt(s *corev1.Secret) time.Time {
	issued, err1 := time.Parse(time.RFC3339, s.Annotations[annotationIssued])
	expires, err2 := time.Parse(time.RFC3339, s.Annotations[annotationExpires])
	if err1 != nil || err2 != nil || len(s.Data[KeyToken]) == 0 {
		return time.Time{} // somebody changed it
	}
	life := expires.Sub(issued)
	h := fnv.New32a()
	_, _ = h.Write([]byte(s.Namespace + "/" + s.Name + strconv.FormatInt(issued.Unix(), 10)))
	return issued.Add(life/2 - time.Duration(h.Sum32()%1000)*life/10_000)
}

// errForeign is of a Secret with the name of ours that somebody else made.
var errForeign = errors.New("there is a Secret of that name which is not the operator's")

// refresh asks for a token and writes its Secret, which is nil if there is none.
func (k *Keeper) refresh(ctx context.Context, at key, w Want, s *corev1.Secret) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	t, err := k.ask(ctx, w)
	if err == nil {
		err = k.write(ctx, at, s, t, k.account(w))
	}
	k.note(at, w, t, err)
	return err
}

func (k *Keeper) ask(ctx context.Context, w Want) (api.IdentityToken, error) {
	plane := k.plane(w)
	if w.Scoped && !plane.Scoped() {
		return api.IdentityToken{}, errors.New("the operator does not know its space and group: give it --identity-scope SPACE/GROUP")
	}
	issuer, err := k.c.Issuer(ctx)
	if err != nil {
		return api.IdentityToken{}, err
	}
	return issuer.CreateIdentityToken(ctx, k.c.Organization, api.CreateIdentityToken{
		ControlPlane: plane.String(), Provider: w.Name, Audiences: w.audiences(k.c.Audiences),
	})
}

// write puts a token into its Secret, at once with what is told of it.
func (k *Keeper) write(ctx context.Context, at key, s *corev1.Secret, t api.IdentityToken, account string) error {
	data := map[string][]byte{KeyToken: []byte(t.Token)}
	told := map[string]string{
		annotationSubject: t.Subject, annotationPlane: account, annotationIssued: t.IssuedAt.UTC().Format(time.RFC3339), annotationExpires: t.Expires.UTC().Format(time.RFC3339),
	}
	if s == nil {
		err := k.c.Writer.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: at.Namespace, Name: at.Name, Annotations: told, Labels: map[string]string{labelManagedBy: managedBy, labelComponent: component},
			},
			Type: corev1.SecretTypeOpaque, Data: data,
		})
		if apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("%w: %s, or another operator was quicker", errForeign, at)
		}
		return err
	}
	next := s.DeepCopy() // with its version: a change that somebody else made is not overwritten
	if next.Annotations == nil {
		next.Annotations = make(map[string]string)
	}
	maps.Copy(next.Annotations, told)
	next.Data = data
	return k.c.Writer.Update(ctx, next)
}

// note remembers a failure, and tells it the first time.
func (k *Keeper) note(at key, w Want, t api.IdentityToken, err error) {
	k.c.Metrics.asked(err)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		delete(k.failed, at)
		k.c.Log.Info("identity token renewed", "secret", at.String(), "subject", t.Subject, "audiences", t.Audiences, "id", t.ID, "expires", t.Expires)
		return
	}
	f := k.failed[at]
	wait := min(firstWait<<min(f.times, 10), longWait)
	if told := err.Error(); told != f.text {
		f.text = told
		k.c.Log.Error("an identity token cannot be had; will try again", "secret", at.String(), "name", w.Name, "error", err)
	}
	f.times++
	f.again = k.c.Now().Add(wait)
	k.failed[at] = f
}

// tidy deletes Secrets that no pod has mounted for a while, and forgets what is gone.
func (k *Keeper) tidy(ctx context.Context, wanted map[key]demand, have map[key]*corev1.Secret) error {
	now := k.c.Now()
	var gone []key
	k.mu.Lock()
	for at := range have {
		if _, ok := wanted[at]; ok {
			delete(k.unused, at)
		} else if since, ok := k.unused[at]; !ok {
			k.unused[at] = now
		} else if now.Sub(since) >= unusedFor {
			gone = append(gone, at)
		}
	}
	maps.DeleteFunc(k.unused, func(at key, _ time.Time) bool { return have[at] == nil })
	maps.DeleteFunc(k.failed, func(at key, _ failure) bool { _, ok := wanted[at]; return !ok })
	k.mu.Unlock()
	var errs []error
	for _, at := range gone {
		s := have[at]
		err := k.c.Writer.Delete(ctx, s, client.Preconditions{UID: &s.UID, ResourceVersion: &s.ResourceVersion})
		if err = client.IgnoreNotFound(err); err != nil {
			errs = append(errs, fmt.Errorf("delete Secret %s: %w", at, err))
			continue
		}
		k.c.Log.Info("identity token deleted: no pod mounts it", "secret", at.String())
	}
	return errors.Join(errs...)
}

// Ensure sees to it that a namespace has the Secret of a token. One that is there is left to
// the Keeper that runs.
func (k *Keeper) Ensure(ctx context.Context, namespace string, w Want) error {
	at := key{Namespace: namespace, Name: w.SecretName()}
	var s corev1.Secret
	err := k.c.Reader.Get(ctx, at, &s)
	switch {
	case err == nil:
		return nil
	case !apierrors.IsNotFound(err):
		return err
	case !k.due(at, nil, false, k.c.Now()):
		k.mu.Lock()
		defer k.mu.Unlock()
		return errors.New(k.failed[at].text)
	}
	return k.refresh(ctx, at, w, nil)
}
