package dialer

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/login"
	"postern.dev/postern/internal/party"
	"postern.dev/postern/internal/wire"
)

// Options says at which hub, as whom, and for which organization a Dialer works.
// ConnectURL and one of the secrets are required.
type Options struct {
	// ConnectURL is the hub: tls://HOST[:4222], https://HOST[:443], or wss://HOST[:443]
	// where only web traffic passes.
	ConnectURL string

	// CAFile names the file with the hub's CA certificate in PEM, and CAPin is its
	// fingerprint, sha256:HEX. Without either the system's CAs are trusted. With wss
	// one of them is required.
	CAFile string
	CAPin  string

	// ProxyURL is an HTTP proxy on the way to the hub, http:// or https://; ProxyCAFile is
	// the CA of the latter. Without one, AGENT_PROXY, HTTPS_PROXY and NO_PROXY count.
	ProxyURL    string
	ProxyCAFile string

	// Organization is the one to work in; empty for "default".
	Organization string

	// One of these secrets proves who the program is. Files are read again at each
	// renewal of the credentials, about every half hour; another token in TokenFile is taken
	// within seconds.
	TokenFile         string                                // a robot's token, as postern robot token create writes it
	Token             string                                // the same, itself
	WorkloadTokenFile string                                // a token of an issuer that the organization trusts
	TokenSource       func(context.Context) (string, error) // gives a robot's token whenever one is needed

	// Name is what agents' rules and the audit log call this program, as they do a
	// proxy: proxy:NAME. Processes that run at the same time need a name each. Empty for
	// the pod's or host's name with a random end.
	Name string

	// Agent is the agent that is meant where a target names none.
	Agent string

	// Suffix is the domain of HOST.AGENT.SUFFIX in addresses; empty for
	// postern.internal, "-" for none.
	Suffix string

	// Zone is where the program runs; replicas of the same zone are preferred.
	Zone string

	// Warm names agents to which connections are kept ready from the start. Others
	// get theirs with the first Dial.
	Warm []string

	// Log takes what happens in the background; nil for nothing.
	Log *slog.Logger

	session *login.Session // of a person
}

// FromContext returns the options of a context of "postern login": the hub, how to reach
// it, the organization, and the session of the person who has signed in there, which is
// renewed as for the command line. An empty name is the current context. The person's
// access grants count.
func FromContext(name string) (Options, error) {
	store, err := login.Open(os.Getenv)
	if err != nil {
		return Options{}, public(err)
	}
	all, err := store.Contexts()
	if err != nil {
		return Options{}, public(err)
	}
	c, err := all.Find(name)
	if err == nil && c == nil {
		err = wire.Fail(wire.LegClient, wire.CodeBadRequest, "there is no current context").WithHint("sign in with: postern login HUB")
	}
	if err != nil {
		return Options{}, public(err)
	}
	return Options{
		ConnectURL: c.Hub, CAFile: c.CAFile, CAPin: c.CAPin, ProxyURL: c.ProxyURL, ProxyCAFile: c.ProxyCAFile, Organization: c.Organization,
		session: &login.Session{Store: store, Context: c.Name, Getenv: os.Getenv},
	}, nil
}

func (o Options) suffix() string {
	switch o.Suffix {
	case "":
		return config.DefaultSuffix
	case "-":
		return ""
	default:
		return o.Suffix
	}
}

// party checks the options and returns them as the party's.
func (o Options) party() (party.Config, error) {
	s := config.Party{
		Uplink:       config.Uplink{ConnectURL: o.ConnectURL, CAFile: o.CAFile, CAPin: o.CAPin, ProxyURL: o.ProxyURL, ProxyCAFile: o.ProxyCAFile},
		Organization: o.Organization, AgentID: o.Agent, Name: o.Name,
		TokenFile: o.TokenFile, Token: config.Secret(o.Token), WorkloadTokenFile: o.WorkloadTokenFile,
	}
	if s.Organization == "" {
		s.Organization = config.DefaultOrganization
	}
	if s.Name == "" {
		s.Name = config.ReplicaName(config.System())
	}
	proofs := 0
	for _, given := range []bool{o.TokenFile != "", o.Token != "", o.WorkloadTokenFile != "", o.TokenSource != nil, o.session != nil} {
		if given {
			proofs++
		}
	}
	switch {
	case proofs == 0:
		return party.Config{}, badOption("a secret is missing: set TokenFile, Token, WorkloadTokenFile or TokenSource, or begin with FromContext")
	case proofs > 1:
		return party.Config{}, badOption("more than one secret is set")
	}
	for _, one := range []struct{ what, name string }{{"organization", s.Organization}, {"proxy name", s.Name}, {"agent ID", o.Agent}, {"zone", o.Zone}} {
		if err := identity.ValidateName(one.what, one.name); err != nil && one.name != "" {
			return party.Config{}, badRequest(err)
		}
	}
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	cfg := party.Config{
		Settings: s, Role: identity.RoleProxy, Name: s.Name, Replica: s.Name, Version: version(), Getenv: os.Getenv,
		Log: log.With("organization", s.Organization, "proxy", s.Name),
	}
	switch {
	case o.session != nil:
		cfg.Secret = o.session
	case o.TokenSource != nil:
		cfg.Secret = tokenSource(o.TokenSource)
	}
	return cfg, nil
}

// secret returns what to show to the hub's HTTPS.
func (o Options) secret() enroll.Secret {
	switch {
	case o.session != nil:
		return o.session
	case o.TokenSource != nil:
		return tokenSource(o.TokenSource)
	case o.WorkloadTokenFile != "":
		return &enroll.WorkloadToken{File: o.WorkloadTokenFile}
	default:
		return &enroll.RobotToken{File: o.TokenFile, Value: o.Token}
	}
}

// tokenSource is a Secret of package enroll.
type tokenSource func(context.Context) (string, error)

// SubjectToken implements enroll.Secret.
func (f tokenSource) SubjectToken(ctx context.Context) (token, tokenType string, err error) {
	text, err := f(ctx)
	if err != nil {
		return "", "", fmt.Errorf("token source: %w", err)
	}
	t, err := enroll.ParseToken([]byte(text))
	if err != nil {
		return "", "", badOption("the token source gave no token: %s", err)
	}
	return t.Token, t.Type(), nil
}

// version returns the version of this module in the program that uses it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "library"
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == "postern.dev/postern" && m.Version != "" {
			return m.Version
		}
	}
	return "library"
}
