package proxy

import (
	"strings"
	"testing"

	"postern.dev/postern/internal/wire"
)

func TestRouterUser(t *testing.T) {
	t.Parallel()
	hub := Router{Organization: "default", Organizations: true}
	alone := Router{Organization: "acme"}
	for _, c := range []struct {
		router Router
		name   string
		want   string // ORG/AGENT; empty for an error
	}{
		{hub, "edge", "default/edge"},
		{hub, "", "default/"},
		{hub, "acme/edge", "acme/edge"},
		{hub, "acme%2Fedge", "acme/edge"},
		{hub, "acme%2fedge", "acme/edge"},
		{hub, "acme.edge", "acme/edge"},
		{hub, "acme/", "acme/"},
		{hub, "/edge", ""},
		{hub, "a/b/c", ""},
		{hub, "a.b.c", ""},
		{hub, "acme/Edge", ""},
		{hub, "Acme/edge", ""},
		{hub, "e d", ""},
		{alone, "edge", "acme/edge"},
		{alone, "", "acme/"},
		{alone, "other/edge", ""},
		{alone, "other.edge", ""},
	} {
		got, err := c.router.User(c.name)
		if err != nil {
			if f := wire.AsFailure(err, wire.LegUnknown); c.want != "" || f.Leg != wire.LegClient || f.Code != wire.CodeBadRequest {
				t.Errorf("%q: %v", c.name, err)
			}
		} else if text := got.Organization + "/" + got.Agent; text != c.want {
			t.Errorf("%q: %s, want %s", c.name, text, c.want)
		}
	}
}

func TestRoute(t *testing.T) {
	t.Parallel()
	r := Router{Suffix: "postern.internal", Organization: "default", Agent: "edge"}
	for _, c := range []struct {
		router Router
		user   AgentRef
		host   string
		want   string // "ORG/AGENT target", or an error's text
	}{
		{r, AgentRef{}, "db", "default/edge tcp:db:1"},
		{r, AgentRef{"", "lab"}, "db", "default/lab tcp:db:1"},
		{r, AgentRef{"acme", "lab"}, "db", "acme/lab tcp:db:1"},
		{r, AgentRef{"acme", ""}, "db", "acme/edge tcp:db:1"},
		// The host name goes before the user name, and leaves the organization alone.
		{r, AgentRef{"acme", "lab"}, "db.x.office.postern.internal", "acme/office tcp:db.x:1"},
		{r, AgentRef{}, "DB.Office.Postern.INTERNAL.", "default/office tcp:db:1"},
		{r, AgentRef{}, "10.0.0.1.office.postern.internal", "default/office tcp:10.0.0.1:1"},
		{r, AgentRef{}, "kubernetes.default.svc.cluster.local.office.postern.internal", "default/office tcp:kubernetes.default.svc.cluster.local:1"},
		{r, AgentRef{}, "kubernetes.office.postern.internal", "default/office tcp:kubernetes:1"},
		{r, AgentRef{}, "xpostern.internal", "default/edge tcp:xpostern.internal:1"},
		{r, AgentRef{}, "a.b.xpostern.internal", "default/edge tcp:a.b.xpostern.internal:1"},
		{r, AgentRef{}, "office.postern.internal", "names no target"},
		{r, AgentRef{}, "postern.internal", "names no target"},
		{r, AgentRef{}, ".postern.internal", "names no target"},
		{r, AgentRef{}, ".office.postern.internal", "names no target"},
		{r, AgentRef{}, "db.-x.postern.internal", "agent ID"},
		{r, AgentRef{}, "db..office.postern.internal", "names no target"},
		{r, AgentRef{}, "a b.office.postern.internal", "not allowed in a name"},
		{Router{Agent: "edge"}, AgentRef{}, "db.office.postern.internal", "edge tcp:db.office.postern.internal:1"},
		{Router{}, AgentRef{}, "db", "which agent"},
		{Router{Suffix: "x.y"}, AgentRef{}, "db.lab.x.y", "lab tcp:db:1"},
	} {
		agent, target, err := c.router.Route(c.user, c.host, 1)
		got := agent.String() + " " + target.String()
		if err != nil {
			got = err.Error()
			if !strings.Contains(got, c.want) || wire.AsFailure(err, wire.LegUnknown).Code != wire.CodeBadRequest {
				t.Errorf("%q: %v, want %s", c.host, err, c.want)
			}
		} else if got != c.want {
			t.Errorf("%q: %s, want %s", c.host, got, c.want)
		}
	}
}
