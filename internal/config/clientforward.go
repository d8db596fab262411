package config

import (
	"strings"
	"time"
)

// ForwardClient is the settings of a forward from a shell: a client that is a
// proxy for as long as it lasts.
type ForwardClient struct {
	Client
	Listen string // HOST:PORT, or "-" for standard input and output
	Log    Log
}

// DefaultForward returns a forward's settings before anything is configured. It
// logs little, since a person reads it between other output.
func DefaultForward() ForwardClient {
	return ForwardClient{Client: DefaultClient(), Log: Log{Format: "auto", Level: "warn"}}
}

func (f *ForwardClient) fields() []*Field {
	all := []*Field{text("listen", "ADDR", &f.Listen, "local address, for example 127.0.0.1:5432; - for standard input and output")}
	return append(append(all, f.Client.fields()...), f.Log.fields()...)
}

func (f *ForwardClient) fromFile() bool { return true }

func (f *ForwardClient) check(c *checker) {
	if f.Listen != "" && f.Listen != "-" {
		c.listenAddr("listen", f.Listen)
	}
	f.Client.check(c)
	f.Log.check(c)
}

// Proxy returns the settings of the proxy that serves the forward.
func (f *ForwardClient) Proxy(spec Forward, name string, drain time.Duration) Proxy {
	p := DefaultProxy()
	p.Uplink = Uplink{ConnectURL: f.Hub, CAFile: f.CAFile, CAPin: f.CAPin, ProxyURL: f.ProxyURL, ProxyCAFile: f.ProxyCAFile}
	p.Organization, p.AgentID, p.Name = f.Organization, spec.Agent, name
	p.TokenFile, p.Token, p.Context = f.TokenFile, f.Token, f.Context
	p.Forwards = []string{spec.String()}
	p.DrainTimeout, p.Log = drain, f.Log
	if spec.Organization != "" && strings.TrimSpace(spec.Organization) != f.Organization {
		p.Organization = spec.Organization
	}
	return p
}
