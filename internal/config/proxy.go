package config

// DefaultSuffix is the domain under which proxies find agents by host name:
// HOST.AGENT.postern.internal.
const DefaultSuffix = "postern.internal"

// Listeners is where clients reach a proxy, its own process or the hub's, and
// what they must show.
type Listeners struct {
	HTTP            string   // HOST:PORT for HTTP CONNECT and absolute-form requests; empty for none
	SOCKS5          string   // HOST:PORT for SOCKS5; empty for none
	Forwards        []string // fixed forwards, read by ParseForward
	CredentialsFile string   // lines of USER:PASSWORD; clients must show one of them; read again when it changes
	RequireToken    bool     // clients must show a robot token of the organization as password
	Suffix          string   // domain of HOST.AGENT.SUFFIX
	Zone            string   // where the proxy runs; it prefers replicas of the same zone
}

func (l *Listeners) fields() []*Field {
	return []*Field{
		text("http", "ADDR", &l.HTTP, "serve HTTP CONNECT and plain HTTP proxy requests on this address, for example 127.0.0.1:3128"),
		text("socks5", "ADDR", &l.SOCKS5, "serve SOCKS5 on this address, for example 127.0.0.1:1080"),
		list("forward", "FORWARD", &l.Forwards, "forward a local address to a target: ADDR=AGENT/tcp:HOST:PORT or ADDR=AGENT/kubernetes"),
		text("credentials-file", "FILE", &l.CredentialsFile, "lines of USER:PASSWORD, one of which HTTP and SOCKS5 clients must show; read again when it changes"),
		toggle("require-token", &l.RequireToken, "HTTP and SOCKS5 clients must show a robot token of the organization as password, on loopback too"),
		text("suffix", "DOMAIN", &l.Suffix, "domain for host names that name their agent: HOST.AGENT.DOMAIN"),
		text("zone", "ZONE", &l.Zone, "where this process runs; a proxy prefers the agents' replicas of its own zone"),
	}
}

// check checks the listeners. robots says that robot tokens always serve as
// passwords, so that no listener is without credentials.
func (l *Listeners) check(c *checker, robots bool) {
	for _, one := range []struct{ name, addr string }{{"http", l.HTTP}, {"socks5", l.SOCKS5}} {
		if one.addr != "" && c.listenAddr(one.name, one.addr) && !Loopback(one.addr) && l.CredentialsFile == "" && !l.RequireToken && !robots {
			c.fail(one.name, "give --credentials-file or --require-token, or listen on 127.0.0.1",
				"%q can be reached from other machines, and no credentials are required", one.addr)
		}
	}
	seen := make(map[string]bool)
	for _, text := range l.Forwards {
		f, err := ParseForward(text)
		switch {
		case err != nil:
			c.fail("forward", "", "%v", err)
		case seen[f.Listen] && !ephemeral(f.Listen):
			c.fail("forward", "use another port", "%s is used by two forwards", f.Listen)
		default:
			seen[f.Listen] = true
		}
	}
	c.host("suffix", l.Suffix)
	if l.Zone != "" {
		c.name("zone", "zone", l.Zone)
	}
}

// Proxy is the settings of a proxy of its own process.
type Proxy struct {
	Party
	Listeners
}

// DefaultProxy returns a proxy's settings before anything is configured.
func DefaultProxy() Proxy {
	return Proxy{
		Party:     Party{DrainTimeout: defaultDrain, Log: Log{Format: "auto", Level: "info"}},
		Listeners: Listeners{Suffix: DefaultSuffix},
	}
}

func (p *Proxy) fields() []*Field {
	all := p.Party.fields("agent to use when a client names none",
		"name of this proxy, unique in its organization; without it POD_NAME, or the host's name and a random end")
	all = append(all, text(contextName, "NAME", &p.Context,
		"context of postern login to use, for a proxy on a person's machine; without it the current one, unless --connect-url is another hub"))
	all = append(all, p.Listeners.fields()...)
	return append(all, p.tail()...)
}

func (p *Proxy) contextFields() (context, hub string) { return contextName, "connect-url" }

// SignedIn reports whether the session of the context is what to enrol with.
func (p *Proxy) SignedIn() bool { return p.Context != "" && p.TokenFile == "" && p.Token == "" }

func (p *Proxy) fromFile() bool { return true }

func (p *Proxy) complete(s *Set, env Environment) { p.Party.complete(s, env) }

func (p *Proxy) check(c *checker) {
	p.Party.check(c)
	p.Listeners.check(c, false)
	if p.AgentID != "" {
		c.name("agent-id", "agent ID", p.AgentID)
	}
	if p.HTTP == "" && p.SOCKS5 == "" && len(p.Forwards) == 0 {
		c.fail("http", "give at least one of --http, --socks5 and --forward, for example --http 127.0.0.1:3128",
			"is not set, and nothing else lets clients in")
	}
}
