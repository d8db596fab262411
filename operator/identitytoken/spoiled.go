package identitytoken

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"postern.dev/postern/internal/controlplane"
)

const (
	// askKeys is how often the issuer is asked for its keys.
	askKeys = 30 * time.Second

	// settled is how old a token has to be before it is judged: several issuers of one name may learn
	// of each other's keys a little later.
	settled = 20 * time.Second
)

// publishedState is what a Keeper knows of the keys that an issuer shows.
type publishedState struct {
	asked  time.Time
	failed string
}

// spoiled returns the Secrets whose token is of no use, long before its hour is over: its key was
// withdrawn, or it was made when the operator's settings named another control plane.
func (k *Keeper) spoiled(ctx context.Context, wanted map[key]demand, have map[key]*corev1.Secret) map[key]bool {
	now := k.c.Now()
	old := make(map[key]bool)
	byIssuer := make(map[string]map[key]string)
	for at, w := range wanted {
		s := have[at]
		if s == nil {
			continue
		}
		if issued, err := time.Parse(time.RFC3339, s.Annotations[annotationIssued]); err != nil || now.Sub(issued) < settled {
			continue
		}
		if before := s.Annotations[annotationPlane]; before != "" && before != k.account(w.Want) {
			old[at] = true
			continue
		}
		if issuer, id, ok := keyOf(string(s.Data[KeyToken])); ok {
			if byIssuer[issuer] == nil {
				byIssuer[issuer] = make(map[key]string)
			}
			byIssuer[issuer][at] = id
		}
	}
	if k.c.Published == nil || now.Sub(k.published.asked) < askKeys {
		return old
	}
	k.published.asked = now
	for issuer, ids := range byIssuer {
		shown, err := k.askForKeys(ctx, issuer)
		if err != nil {
			continue
		}
		for at, id := range ids {
			if !shown[id] {
				k.c.Log.Warn("an identity token is renewed: its key is none of the issuer's any more", "secret", at.String(), "key", id)
				old[at] = true
			}
		}
	}
	return old
}

// askForKeys asks an issuer for its keys. That it fails is told once.
func (k *Keeper) askForKeys(ctx context.Context, issuer string) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	shown, err := k.c.Published(ctx, issuer)
	text := ""
	if err != nil {
		if text = err.Error(); text != k.published.failed {
			k.c.Log.Warn("the issuer's keys cannot be read, so that a withdrawn one is noticed late", "issuer", issuer, "error", err)
		}
	}
	k.published.failed = text
	return shown, err
}

// plane is the control plane as the subject of a token names it.
func (k *Keeper) plane(w Want) controlplane.Ref {
	plane := k.c.ControlPlane
	if !w.Scoped {
		plane.Space, plane.Group = "", ""
	}
	return plane
}

// account is the control plane with its organization, for whom a token was asked.
func (k *Keeper) account(w Want) string { return k.c.Organization + "/" + k.plane(w).String() }

// keyOf returns the issuer's name and the ID of the key of a token that the issuer gave us, which is
// why nothing is verified.
func keyOf(token string) (issuer, id string, ok bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", "", false
	}
	var header struct {
		ID string `json:"kid"`
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	for n, into := range []any{&header, &claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[n])
		if err != nil || json.Unmarshal(b, into) != nil {
			return "", "", false
		}
	}
	return claims.Issuer, header.ID, claims.Issuer != "" && header.ID != ""
}
