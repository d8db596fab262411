package config

import (
	"net/url"
	"strings"
)

// GatewayClient is the settings of the commands that set up clients of the gateway.
type GatewayClient struct {
	Client
	GatewayURL    string // https://HOST[:PORT] of a gateway with a port of its own; empty for the hub's
	GatewayCAFile string // PEM file with its CA; empty for the system's roots
}

// DefaultGatewayClient returns those settings before anything is configured.
func DefaultGatewayClient() GatewayClient { return GatewayClient{Client: DefaultClient()} }

func (g *GatewayClient) fields() []*Field {
	return append(g.Client.fields(),
		text("gateway-url", "URL", &g.GatewayURL, "address of the gateway, where it has a port of its own (--gateway-listen of the hub); without it the hub's"),
		text("gateway-ca-file", "FILE", &g.GatewayCAFile, "CA certificate of --gateway-url; without it the system's CAs are trusted"),
	)
}

func (g *GatewayClient) complete(s *Set, env Environment) {
	g.Client.complete(s, env)
	g.GatewayURL = strings.TrimSuffix(g.GatewayURL, "/")
}

func (g *GatewayClient) check(c *checker) {
	g.Client.check(c)
	if g.GatewayURL == "" {
		if g.GatewayCAFile != "" {
			c.fail("gateway-ca-file", "give --gateway-url too", "is of no use alone")
		}
		return
	}
	u, err := url.Parse(g.GatewayURL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		c.fail("gateway-url", "write https://HOST:PORT, for example https://gateway.example.org:9092", "%q is not the address of a gateway", redactURL(g.GatewayURL))
	}
}

// Gateway returns the address of the gateway.
func (g *GatewayClient) Gateway() string {
	if g.GatewayURL != "" {
		return g.GatewayURL
	}
	return g.Hub
}
