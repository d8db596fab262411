package gateway

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/kubeurl"
	"postern.dev/postern/internal/wire"
)

// Bounds of asking a cluster whose a token is. A stranger may have it asked as often
// as he likes, each time about another token.
const (
	maxForeignToken = 16 << 10 // bytes; longer ones are not shown to anybody
	goodFor         = 10 * time.Second
	badFor          = 5 * time.Second
	maxReviews      = 4096 // answers that are remembered
	maxReviewing    = 64   // questions at once; a quarter for one network, behind which many may be
	reviewTime      = 10 * time.Second
	maxReview       = 1 << 20 // bytes of an answer
	maxForeignGroup = 64      // groups
)

// ReviewPath is where a cluster says whose a token is.
const ReviewPath = "/apis/authentication.k8s.io/v1/tokenreviews"

// Asker sends a cluster's API server one request, as whoever may ask it about tokens.
type Asker func(r *http.Request) (*http.Response, error)

// Reviewer asks a cluster whose a Kubernetes token is, and remembers the answer for
// some seconds. It is safe for concurrent use.
type Reviewer struct {
	cluster string // for people
	ask     Asker
	key     [32]byte // of the digests: a dump of them helps nobody
	known   *recall[digest, assertion.Identity]
}

type digest [sha256.Size]byte

// NewReviewer returns a reviewer of a cluster. A nil now means time.Now.
func NewReviewer(cluster string, ask Asker, now func() time.Time) *Reviewer {
	v := &Reviewer{cluster: cluster, ask: ask, known: newRecall[digest, assertion.Identity](maxReviewing, maxReviews, now)}
	_, _ = rand.Read(v.key[:]) // never fails
	return v
}

// errForeign says that a token is none of the cluster's.
var errForeign = errors.New("the cluster does not know the token")

// Review returns whose a token is. The error is errForeign for one that is not the
// cluster's, or a *wire.Failure that says why the cluster cannot be asked.
func (v *Reviewer) Review(ctx context.Context, token string) (assertion.Identity, error) {
	return v.review(ctx, "", token)
}

// review is Review for somebody who may show token after token, and has to leave room for
// others.
func (v *Reviewer) review(ctx context.Context, asker, token string) (assertion.Identity, error) {
	if token == "" || len(token) > maxForeignToken {
		return assertion.Identity{}, errForeign
	}
	mac := hmac.New(sha256.New, v.key[:])
	mac.Write([]byte(token))
	who, err := v.known.get(ctx, asker, digest(mac.Sum(nil)), reviewTime, func(ctx context.Context) (assertion.Identity, time.Duration, error) {
		switch who, err := v.put(ctx, token); {
		case err == nil:
			return who, goodFor, nil
		case errors.Is(err, errForeign):
			return who, badFor, err
		default:
			return who, 0, err // it may be better already
		}
	})
	if errors.Is(err, errBusy) {
		return who, wire.Fail(wire.LegHub, wire.CodeOverloaded, "cluster %s is being asked about too many tokens", v.cluster).WithHint("try again")
	}
	return who, err
}

// tokenReview is authentication.k8s.io/v1 TokenReview, as much of it as is needed.
type tokenReview struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		Token string `json:"token,omitempty"`
	} `json:"spec"`
	Status struct {
		Authenticated bool   `json:"authenticated"`
		Error         string `json:"error"`
		User          struct {
			Username string   `json:"username"`
			UID      string   `json:"uid"`
			Groups   []string `json:"groups"`
		} `json:"user"`
	} `json:"status,omitzero"`
}

func (v *Reviewer) put(ctx context.Context, token string) (assertion.Identity, error) {
	fail := func(code wire.Code, format string, args ...any) (assertion.Identity, error) {
		return assertion.Identity{}, wire.Fail(wire.LegTarget, code, "cluster %s cannot be asked whose the token is: %s", v.cluster, fmt.Sprintf(format, args...))
	}
	q := tokenReview{APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview"}
	q.Spec.Token = token
	body, err := json.Marshal(q)
	if err != nil {
		return fail(wire.CodeInternal, "%s", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+agentHost+ReviewPath, bytes.NewReader(body))
	if err != nil {
		return fail(wire.CodeInternal, "%s", err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", "postern")
	res, err := v.ask(r)
	if err != nil {
		f := wire.AsFailure(err, wire.LegAgent)
		return assertion.Identity{}, wire.Fail(f.Leg, f.Code, "cluster %s cannot be asked whose the token is: %s", v.cluster, f.Text).WithHint("%s", f.Hint).WithCause(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxReview))
	if err != nil {
		return fail(wire.CodeLost, "%s", err)
	}
	if res.StatusCode != http.StatusCreated && res.StatusCode != http.StatusOK {
		return fail(wire.CodeUnreachable, "it answered %s", res.Status)
	}
	var a tokenReview
	if err := json.Unmarshal(text, &a); err != nil || a.Kind != q.Kind {
		return fail(wire.CodeProtocol, "its answer is no TokenReview")
	}
	if !a.Status.Authenticated || a.Status.User.Username == "" {
		return assertion.Identity{}, errForeign
	}
	u := a.Status.User
	if len(u.Groups) > maxForeignGroup {
		return fail(wire.CodeProtocol, "its owner is in %d groups, and %d are possible", len(u.Groups), maxForeignGroup)
	}
	return assertion.Identity{User: u.Username, UID: u.UID, Groups: u.Groups}, nil
}

// ClusterTokens is an Authenticator by the tokens of a registered cluster, such as
// those of its service accounts: they are good for the clusters of one organization.
type ClusterTokens struct {
	Name         string // of the cluster, as it stands in user names
	Organization string
	Home         string // agent of that very cluster, where its users are called as they are; empty for none
	Reviewer     *Reviewer
	Names        Names
}

// Method implements Authenticator.
func (*ClusterTokens) Method() Method { return MethodCluster }

// Authenticate implements Authenticator. A token that the cluster does not know may be
// another one's.
func (t *ClusterTokens) Authenticate(r *http.Request, u kubeurl.URL) (Caller, error) {
	token := Token(r)
	if token == "" {
		return Caller{}, ErrNoCredentials
	}
	c, who, err := t.caller(r, token)
	if err == nil && t.Home != "" && u.Cluster == t.Home && (u.Organization == "" || u.Organization == t.Organization) {
		c.Kubernetes = Native(who)
	}
	return c, err
}

// caller returns whose the token of a request is, here and in the cluster itself.
func (t *ClusterTokens) caller(r *http.Request, token string) (Caller, assertion.Identity, error) {
	who, err := t.Reviewer.review(r.Context(), network(r), token)
	if errors.Is(err, errForeign) {
		return Caller{}, who, ErrNoCredentials
	}
	if err != nil {
		return Caller{}, who, err
	}
	principal, err := ForeignPrincipal(t.Name, who.User)
	if err != nil {
		return Caller{}, who, err
	}
	return Caller{
		Principal: principal, Organization: t.Organization, Kubernetes: t.Names.Foreign(t.Name, who), Expires: expiryOf(token),
		Still: func(ctx context.Context) error {
			now, err := t.Reviewer.Review(ctx, token)
			if errors.Is(err, errForeign) || err == nil && (now.User != who.User || now.UID != who.UID) {
				return wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the token of %s is not good any more", principal)
			}
			return err
		},
	}, who, nil
}

// network returns where a request comes from, as what counts as one stranger: an IPv4
// address, or an IPv6 network of 64 bits, which is what one customer has at least.
func network(r *http.Request) string {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	addr := from.Addr().Unmap().WithZone("")
	if addr.Is4() {
		return addr.String()
	}
	prefix, _ := addr.Prefix(64) // an IPv6 address has one
	return prefix.String()
}

// PassThrough is an Authenticator by the tokens of the very cluster that a request is
// for: it is asked about the token, which then goes there as it is.
type PassThrough struct {
	Organization string
	Cluster      string
	Reviewer     *Reviewer
}

// Method implements Authenticator.
func (*PassThrough) Method() Method { return MethodCluster }

// Authenticate implements Authenticator.
func (t *PassThrough) Authenticate(r *http.Request, u kubeurl.URL) (Caller, error) {
	token := Token(r)
	if token == "" || u.Cluster != t.Cluster || u.Organization != "" && u.Organization != t.Organization {
		return Caller{}, ErrNoCredentials
	}
	c, _, err := (&ClusterTokens{Name: t.Cluster, Organization: t.Organization, Reviewer: t.Reviewer}).caller(r, token)
	if err == nil {
		c.Pass = true
	}
	return c, err
}

// expiryOf returns when a token expires, if it is a JWT that says so. Whoever issued
// it has said that it is good.
func expiryOf(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}
	}
	var c struct {
		Expires float64 `json:"exp"`
	}
	const end = 253402300799 // the year 9999
	if json.Unmarshal(text, &c) != nil || c.Expires <= 0 || c.Expires > end {
		return time.Time{}
	}
	return time.Unix(int64(c.Expires), 0)
}

// Ask returns an Asker that reaches a cluster through its agent, which asks with its
// own service account.
func (g *Gateway) Ask(organization, cluster string) Asker {
	return func(r *http.Request) (*http.Response, error) {
		word, err := g.c.Signer.Prepare(assertion.Claims{
			Organization: organization, Agent: cluster, Method: r.Method, URI: r.URL.RequestURI(), Mode: assertion.ModeSelf, Principal: g.c.Self.String(),
		})
		if err != nil {
			return nil, err
		}
		return g.clusters.send(clusterKey{organization, cluster}, r, word)
	}
}
