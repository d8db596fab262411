package config

import "testing"

func TestParseTokenCluster(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]TokenCluster{
		"hub":          {Name: "hub", Organization: DefaultOrganization},
		"hub=acme":     {Name: "hub", Organization: "acme"},
		"ci=acme:edge": {Name: "ci", Organization: "acme", Agent: "edge"},
	} {
		if got, err := ParseTokenCluster(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "Hub", "=acme:edge", "ci=acme:", "ci=:edge", "ci=acme:edge:x", "ci=acme:Edge", "a:b", "ci==acme"} {
		if got, err := ParseTokenCluster(text); err == nil {
			t.Errorf("%q is %+v", text, got)
		}
	}
	if org, agent, err := ParseCluster("acme:edge"); org != "acme" || agent != "edge" || err != nil {
		t.Errorf("%s %s %v", org, agent, err)
	}
	for _, text := range []string{"", "acme", "acme:", ":edge", "acme:edge:x", "A:b"} {
		if _, _, err := ParseCluster(text); err == nil {
			t.Errorf("%q is a cluster", text)
		}
	}
}

func TestCheckGateway(t *testing.T) {
	t.Parallel()
	good := defaultGateway()
	good.GatewayListen, good.GatewayClientCAFile, good.GatewayTokens = ":9092", "ca.crt", []string{"a", "b=acme:x"}
	for name, change := range map[string]func(*Gateway){
		"":                         func(*Gateway) {},
		"a listener's files alone": func(g *Gateway) { g.GatewayListen = "" },
		"a certificate alone":      func(g *Gateway) { g.GatewayCertFile = "x" },
		"a bad name":               func(g *Gateway) { g.GatewayNames = []string{"a b"} },
		"two clusters of one name": func(g *Gateway) { g.GatewayTokens = []string{"a", "a=acme:x"} },
		"no cluster":               func(g *Gateway) { g.GatewayTokens = []string{"A"} },
		"nothing to pass to":       func(g *Gateway) { g.GatewayPass = []string{"x"} },
		"a bad address":            func(g *Gateway) { g.GatewayListen = "9092" },
	} {
		hub := DefaultHub()
		hub.Gateway = good
		change(&hub.Gateway)
		c := checker{set: Bind(&hub)}
		hub.Gateway.check(&c)
		if failed := len(c.errs) > 0; failed != (name != "") {
			t.Errorf("%q: %v", name, c.errs)
		}
	}
}
