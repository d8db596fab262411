package policy

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"postern.dev/postern/internal/identity"
)

// Asker is who asks for a target. The zero value is somebody whom no rule names.
type Asker struct {
	// Proxy is the proxy's name in its certificate.
	Proxy string

	// Principal is on whose behalf the proxy asks: who enrolled it, or whom the
	// hub's own proxies ask for.
	Principal identity.Principal

	// Groups are those of a user.
	Groups []string
}

// String returns the principal, or the proxy where there is none.
func (a Asker) String() string {
	if a.Principal == (identity.Principal{}) && a.Proxy != "" {
		return string(identity.KindProxy) + ":" + a.Proxy
	}
	return a.Principal.String()
}

// Is reports whether w names the asker.
func (a Asker) Is(w Whom) bool {
	switch w.Kind {
	case identity.KindProxy:
		return w.Name == Everyone || a.Proxy != "" && w.Name == a.Proxy
	case identity.KindGroup:
		return slices.Contains(a.Groups, w.Name)
	default:
		return w.Kind == a.Principal.Kind && w.Kind != "" && (w.Name == Everyone || w.Name == a.Principal.Name)
	}
}

// Names returns every Whom that names the asker.
func (a Asker) Names() iter.Seq[Whom] {
	return func(yield func(Whom) bool) {
		if !yield(Whom{identity.KindProxy, Everyone}) {
			return
		}
		if a.Principal != (identity.Principal{}) &&
			(!yield(Whom{a.Principal.Kind, a.Principal.Name}) || !yield(Whom{a.Principal.Kind, Everyone})) {
			return
		}
		if a.Proxy != "" && !yield(Whom{identity.KindProxy, a.Proxy}) {
			return
		}
		for _, g := range a.Groups {
			if !yield(Whom{identity.KindGroup, g}) {
				return
			}
		}
	}
}

// ParseAsker puts an asker together from what is known of it: "user:NAME",
// "group:NAME", "robot:NAME", "proxy:NAME" and so on. It has one principal and one
// proxy at most, and may be in several groups.
func ParseAsker(texts ...string) (Asker, error) {
	var a Asker
	for _, text := range texts {
		p, err := identity.ParsePrincipal(text)
		switch {
		case err != nil:
			return Asker{}, err
		case p.Kind == identity.KindGroup:
			a.Groups = append(a.Groups, p.Name)
		case p.Kind == identity.KindProxy && a.Proxy == "":
			a.Proxy = p.Name
		case p.Kind != identity.KindProxy && a.Principal == (identity.Principal{}):
			a.Principal = p
		default:
			return Asker{}, fmt.Errorf("%s: an asker has one proxy and one principal at most", p)
		}
	}
	return a, nil
}

// Everyone is the name in a Whom that stands for all of its kind.
const Everyone = "*"

// Whom names askers, in rules and access grants: a user, the members of a group, a
// robot, a workload, a client of the hub's own proxies, or a proxy by the name in
// its certificate; or, with the name Everyone, all of a kind but groups. It is
// comparable; the zero value names nobody.
type Whom struct {
	Kind identity.PrincipalKind
	Name string
}

// ParseWhom reads KIND:NAME or KIND:*.
func ParseWhom(s string) (Whom, error) {
	kind, name, ok := strings.Cut(s, ":")
	if !ok {
		return Whom{}, fmt.Errorf("%.300q: want KIND:NAME, such as user:ann@example.org, group:sre, robot:ci or proxy:NAME, or KIND:* for all of a kind", s)
	}
	w := Whom{identity.PrincipalKind(kind), name}
	return w, w.Validate()
}

// Validate says whether ParseWhom could have read the Whom.
func (w Whom) Validate() error {
	switch w.Kind {
	case identity.KindUser, identity.KindRobot, identity.KindProxy, identity.KindWorkload, identity.KindClient, identity.KindHub, identity.KindAdmin:
		if w.Name == Everyone {
			return nil
		}
	case identity.KindGroup:
		if w.Name == Everyone {
			return fmt.Errorf("group:* names nobody in particular; user:* means every user")
		}
	case identity.KindAgent:
		return fmt.Errorf("agents ask for nothing: %.300q names no asker", w)
	default:
		return fmt.Errorf("%.300q: want user, group, robot, workload, proxy, client, hub or admin before the colon", w)
	}
	return identity.Principal{Kind: w.Kind, Name: w.Name}.Validate()
}

// String returns what ParseWhom reads.
func (w Whom) String() string { return string(w.Kind) + ":" + w.Name }

// MarshalText returns what String does, for JSON.
func (w Whom) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText reads what ParseWhom does.
func (w *Whom) UnmarshalText(b []byte) error {
	one, err := ParseWhom(string(b))
	if err == nil {
		*w = one
	}
	return err
}
