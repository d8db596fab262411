package config

import (
	"net/url"
	"strings"
)

// Client is the settings of the commands that talk to a hub's API.
type Client struct {
	Hub          string // https://HOST[:PORT]
	TokenFile    string // an administrator's or robot's token
	Token        Secret // the token itself, from the environment only; unused when TokenFile is set
	CAFile       string // PEM file with the hub's CA; empty for the system's roots, unless CAPin is set
	CAPin        string // "sha256:HEX" of the hub's CA, instead of CAFile or in addition
	ProxyURL     string // HTTP proxy to reach the hub through; empty for HTTPS_PROXY and NO_PROXY
	ProxyCAFile  string
	Organization string
	Context      string // of a person who signed in; empty for none
}

// DefaultClient returns a client's settings before anything is configured.
func DefaultClient() Client { return Client{Organization: DefaultOrganization} }

func (cl *Client) fields() []*Field {
	return []*Field{
		text("hub", "URL", &cl.Hub, "address of the hub: https://HOST[:PORT]"),
		text("token-file", "FILE", &cl.TokenFile, "token to show to the hub; DIR/admin.token on the hub is the administrator's"),
		hidden("token", &cl.Token, "the token itself, where a file cannot be had").or("UPBOUND_TOKEN"),
		text("ca-file", "FILE", &cl.CAFile, "the hub's CA certificate, DIR/ca.crt on the hub; without it and --ca-pin the system's CAs are trusted"),
		text("ca-pin", "PIN", &cl.CAPin, "fingerprint of the hub's CA as the hub prints it (sha256:...), instead of --ca-file or in addition"),
		link("proxy-url", &cl.ProxyURL, "HTTP proxy to reach the hub through; without it HTTPS_PROXY and NO_PROXY count; keep a password in AGENT_PROXY").or("AGENT_PROXY"),
		text("proxy-ca-file", "FILE", &cl.ProxyCAFile, "CA certificate of an https:// proxy"),
		text("organization", "ORG", &cl.Organization, "organization to work in").or("UPBOUND_ORG"),
		text(contextName, "NAME", &cl.Context, "context of postern login to use; without it the current one, unless --hub is another hub"),
	}
}

func (cl *Client) contextFields() (context, hub string) { return contextName, "hub" }

// SignedIn reports whether the session of the context is what to show to the hub.
func (cl *Client) SignedIn() bool { return cl.Context != "" && cl.TokenFile == "" && cl.Token == "" }

func (cl *Client) fromFile() bool { return false }

func (cl *Client) complete(s *Set, _ Environment) {
	s.oneToken(&cl.TokenFile, &cl.Token)
	cl.completeHub()
}

func (cl *Client) completeHub() { cl.Hub = strings.TrimSuffix(cl.Hub, "/") }

// checkHub checks the address of the hub.
func (cl *Client) checkHub(c *checker) {
	u, err := url.Parse(cl.Hub)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		c.fail("hub", "write https://HOST:PORT, for example https://127.0.0.1:4222", "%q is not the address of a hub", redactURL(cl.Hub))
	}
}

func (cl *Client) check(c *checker) {
	if c.require("hub", cl.Hub) {
		cl.checkHub(c)
	}
	if cl.Token == "" && !cl.SignedIn() && cl.TokenFile == "" {
		c.fail("token-file", "give it with --token-file or POSTERN_TOKEN_FILE, or sign in with: postern login HUB", "is not set")
	}
	c.trust(cl.CAPin)
	c.proxyURL(cl.ProxyURL)
	c.name("organization", "organization", cl.Organization)
}
