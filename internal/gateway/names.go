package gateway

import (
	"slices"
	"strings"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// Groups and users that every cluster knows, and those that the gateway makes up.
const (
	Authenticated = "system:authenticated"
	Robots        = "postern:robots"
	robotUser     = "postern:robot:"
	clusterPrefix = "cluster:"
)

// Extra attributes of an identity, which show up in the cluster's own audit log.
const (
	ExtraPrincipal = "postern.dev/principal"
	ExtraClient    = "postern.dev/client"
)

// Names says under which names clusters see the callers.
type Names struct {
	UserPrefix  string // before the names of the hub's users
	GroupPrefix string // before the names of their groups

	// Reserved are beginnings of names that no user or group of the hub may have
	// in a cluster. Without them somebody whom an identity provider calls
	// system:masters would be one everywhere.
	Reserved []string
}

// User returns whom a cluster sees when a user of the hub asks, and which of his
// groups it does not see. It fails, with a *wire.Failure, for a user whose name is
// reserved.
func (n Names) User(name string, groups []string) (i assertion.Identity, dropped []string, err error) {
	if name = n.UserPrefix + name; n.reserved(name) {
		return i, nil, wire.Fail(wire.LegHub, wire.CodeDenied, "user %q cannot use the gateway: clusters reserve this name", name).
			WithHint("have the hub's operator put something before the names: --gateway-user-prefix")
	}
	i.User = name
	for _, g := range groups {
		if g = n.GroupPrefix + g; n.reserved(g) {
			dropped = append(dropped, g)
		} else {
			i.Groups = append(i.Groups, g)
		}
	}
	i.Groups = append(i.Groups, Authenticated)
	return i, dropped, nil
}

func (n Names) reserved(name string) bool {
	return slices.ContainsFunc(n.Reserved, func(p string) bool { return p != "" && strings.HasPrefix(name, p) })
}

// Robot returns whom a cluster sees when a robot asks.
func (n Names) Robot(name string) assertion.Identity {
	return assertion.Identity{User: robotUser + name, Groups: []string{Robots, Authenticated}}
}

// Foreign returns whom a cluster sees when somebody asks whom a registered cluster
// knows: under names that begin with that cluster's. What makes him more than others
// there, makes him nothing here.
func (n Names) Foreign(cluster string, i assertion.Identity) assertion.Identity {
	prefix := clusterPrefix + cluster + ":"
	out := assertion.Identity{User: prefix + i.User}
	if i.UID != "" {
		out.UID = prefix + i.UID
	}
	for _, g := range i.Groups {
		if g != Authenticated {
			out.Groups = append(out.Groups, prefix+g)
		}
	}
	out.Groups = append(out.Groups, Authenticated)
	return out
}

// Native returns whom a cluster sees when somebody asks whom it knows itself: who that
// is there. It gives him nothing that his own token would not.
func Native(i assertion.Identity) assertion.Identity {
	out := assertion.Identity{User: i.User, UID: i.UID, Groups: slices.Clone(i.Groups)}
	if !slices.Contains(out.Groups, Authenticated) {
		out.Groups = append(out.Groups, Authenticated)
	}
	return out
}

// ForeignPrincipal returns who that is at the hub.
func ForeignPrincipal(cluster, user string) (identity.Principal, error) {
	p := identity.Principal{Kind: identity.KindWorkload, Name: clusterPrefix + cluster + ":" + user}
	if err := p.Validate(); err != nil {
		return identity.Principal{}, wire.Fail(wire.LegHub, wire.CodeDenied, "cluster %s calls the token's owner what the hub cannot keep: %s", cluster, err)
	}
	return p, nil
}

// tell adds to an identity what the cluster's audit log is to know.
func tell(i assertion.Identity, principal identity.Principal, client string) assertion.Identity {
	i.Extra = map[string][]string{ExtraPrincipal: {principal.String()}}
	if client != "" {
		i.Extra[ExtraClient] = []string{client}
	}
	return i
}
