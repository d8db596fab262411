package impersonate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/wire"
)

const (
	wishPath   = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
	maxWishes  = 128              // asked for one request
	wishTime   = 10 * time.Second // for one answer
	wishMemory = 10 * time.Second // for which an answer is good: about as long as API servers remember
	maxKnown   = 4096             // answers
	maxReview  = 256 << 10        // bytes of an answer
)

// wishes asks the cluster whether somebody may act as somebody else, and remembers the
// answers for a while. The API server would ask itself, were it the caller's own
// credentials that it saw; it sees those of the agent, which may do more. Safe for
// concurrent use.
type wishes struct {
	api *cluster
	now func() time.Time

	mu    sync.Mutex
	known map[[sha256.Size]byte]knownWish
}

type knownWish struct {
	verdict verdict
	until   time.Time
}

type verdict struct {
	Allowed bool   `json:"allowed"`
	Reason  string `json:"reason"`
}

func newWishes(api *cluster) *wishes {
	return &wishes{api: api, now: time.Now, known: make(map[[sha256.Size]byte]knownWish)}
}

// attributes are what a SubjectAccessReview is about, of authorization/v1.
type attributes struct {
	Namespace   string `json:"namespace,omitempty"`
	Verb        string `json:"verb"`
	Group       string `json:"group,omitempty"`
	Version     string `json:"version"`
	Resource    string `json:"resource"`
	Subresource string `json:"subresource,omitempty"`
	Name        string `json:"name"`
}

type review struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Spec       reviewSpec `json:"spec"`
}

type reviewSpec struct {
	Resource attributes          `json:"resourceAttributes"`
	User     string              `json:"user"`
	Groups   []string            `json:"groups,omitempty"`
	UID      string              `json:"uid,omitempty"`
	Extra    map[string][]string `json:"extra,omitempty"`
}

// grant returns whom the cluster is to see when somebody wishes to be another, if it
// allows that. Who it really is stays in the extras that the hub sets, for the
// cluster's audit log.
func (w *wishes) grant(ctx context.Context, who, as assertion.Identity) (assertion.Identity, error) {
	if err := sendable(as); err != nil {
		return assertion.Identity{}, err
	}
	all := asked(as)
	if len(all) > maxWishes {
		return assertion.Identity{}, wire.Fail(wire.LegClient, wire.CodeBadRequest, "the request wishes to be %d things at once; %d are possible", len(all), maxWishes)
	}
	for key := range as.Extra {
		if strings.HasPrefix(key, ownExtra) {
			return assertion.Identity{}, wire.Fail(wire.LegClient, wire.CodeDenied, "the extra %s is the hub's to set", key)
		}
	}
	for _, a := range all {
		v, err := w.ask(ctx, who, a)
		if err != nil {
			return assertion.Identity{}, err
		}
		if !v.Allowed {
			return assertion.Identity{}, forbidden(who, a, v)
		}
	}
	extra := maps.Clone(as.Extra)
	for key, values := range who.Extra {
		if strings.HasPrefix(key, ownExtra) {
			if extra == nil {
				extra = make(map[string][]string)
			}
			extra[key] = values
		}
	}
	as.Extra = extra
	return as, nil
}

// asked returns what an identity takes to be impersonated, as API servers see it.
func asked(as assertion.Identity) []attributes {
	const authentication = "authentication.k8s.io"
	all := make([]attributes, 0, 2+len(as.Groups)+len(as.Extra))
	add := func(group, resource, subresource, name string) {
		all = append(all, attributes{Verb: "impersonate", Version: "v1", Group: group, Resource: resource, Subresource: subresource, Name: name})
	}
	if account, ok := strings.CutPrefix(as.User, "system:serviceaccount:"); ok && strings.Count(account, ":") == 1 {
		add("", "serviceaccounts", "", "")
		a := &all[len(all)-1]
		a.Namespace, a.Name, _ = strings.Cut(account, ":")
	} else {
		add("", "users", "", as.User)
	}
	if as.UID != "" {
		add(authentication, "uids", "", as.UID)
	}
	for _, g := range as.Groups {
		add("", "groups", "", g)
	}
	for _, key := range slices.Sorted(maps.Keys(as.Extra)) {
		for _, value := range as.Extra[key] {
			add(authentication, "userextras", key, value)
		}
	}
	return all
}

// forbidden is what an API server would say.
func forbidden(who assertion.Identity, a attributes, v verdict) error {
	resource, scope := a.Resource, "at the cluster scope"
	if a.Subresource != "" {
		resource += "/" + a.Subresource
	}
	if a.Namespace != "" {
		scope = fmt.Sprintf("in the namespace %q", a.Namespace)
	}
	text := fmt.Sprintf("%s %q is forbidden: User %q cannot impersonate resource %q in API group %q %s", resource, a.Name, who.User, resource, a.Group, scope)
	if v.Reason != "" {
		text += ": " + v.Reason
	}
	return wire.Fail(wire.LegTarget, wire.CodeDenied, "%s", text)
}

// ask asks the cluster whether somebody may do something, or remembers its answer.
func (w *wishes) ask(ctx context.Context, who assertion.Identity, a attributes) (verdict, error) {
	body, err := json.Marshal(review{"authorization.k8s.io/v1", "SubjectAccessReview", reviewSpec{a, who.User, who.Groups, who.UID, who.Extra}})
	if err != nil {
		return verdict{}, fmt.Errorf("encode review: %w", err)
	}
	key := sha256.Sum256(body) // the members of JSON maps are sorted
	now := w.now()
	w.mu.Lock()
	known, ok := w.known[key]
	w.mu.Unlock()
	if ok && now.Before(known.until) {
		return known.verdict, nil
	}
	v, err := w.send(ctx, body)
	if err != nil {
		return verdict{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.known) >= maxKnown {
		maps.DeleteFunc(w.known, func(_ [sha256.Size]byte, k knownWish) bool { return !now.Before(k.until) })
	}
	if len(w.known) < maxKnown {
		w.known[key] = knownWish{v, now.Add(wishMemory)}
	}
	return v, nil
}

// send asks the API server, as the agent's own service account.
func (w *wishes) send(ctx context.Context, body []byte) (verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, wishTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+w.api.host+wishPath, bytes.NewReader(body))
	if err != nil {
		return verdict{}, fmt.Errorf("make review: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json")
	r.Header.Set("Authorization", "Bearer "+w.api.token())
	answer, err := w.api.RoundTrip(r)
	if err != nil {
		return verdict{}, failure(err, nil)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxReview))
	if err != nil {
		return verdict{}, failure(err, nil)
	}
	if answer.StatusCode != http.StatusCreated && answer.StatusCode != http.StatusOK {
		var said struct {
			Message string `json:"message"`
		}
		_ = json.Unmarshal(text, &said) // it may be anything
		return verdict{}, wire.Fail(wire.LegTarget, wire.CodeInternal, "the cluster does not tell the agent whether one user may be another: %s %.200q", answer.Status, said.Message).
			WithHint("the agent's service account needs to create subjectaccessreviews")
	}
	var said struct {
		Status verdict `json:"status"`
	}
	if err := json.Unmarshal(text, &said); err != nil {
		return verdict{}, wire.Fail(wire.LegTarget, wire.CodeProtocol, "the cluster's answer to a review cannot be read: %v", err)
	}
	return said.Status, nil
}
