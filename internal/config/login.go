package config

import "slices"

// LoginClient is the settings of a person's sign-in at a hub. It has no token: it
// is about getting one.
type LoginClient struct {
	Client
	Device    bool // sign in with a device code
	NoBrowser bool // print the address only
}

// DefaultLogin returns the settings of a sign-in before anything is configured.
func DefaultLogin() LoginClient { return LoginClient{} }

func (l *LoginClient) fields() []*Field {
	all := slices.DeleteFunc(l.Client.fields(), func(f *Field) bool { return f.Name == "token" || f.Name == "token-file" })
	for _, f := range all {
		switch f.Name {
		case "organization":
			f.Usage = "organization to work in; without it the only one in which you have a role"
		case contextName:
			f.Usage = "name of the context to make or sign in to again; without it that of the hub, or its host name"
		}
	}
	return append(all,
		toggle("device", &l.Device, "sign in with a code that you enter on any machine with a browser"),
		toggle("no-browser", &l.NoBrowser, "print the address to open, and open no browser"),
	)
}

// contextFields implements withContext: a sign-in takes nothing from a context, since
// it makes one.
func (l *LoginClient) contextFields() (context, hub string) { return "", "" }

func (l *LoginClient) complete(*Set, Environment) {
	l.Token, l.TokenFile = "", ""
	l.completeHub()
}

func (l *LoginClient) check(c *checker) {
	if l.Hub == "" {
		c.fail("hub", "give it as in: postern login https://hub.example.org:4222", "is not set")
		return
	}
	l.checkHub(c)
	c.trust(l.CAPin)
	c.proxyURL(l.ProxyURL)
	if l.Organization != "" {
		c.name("organization", "organization", l.Organization)
	}
	if l.Device && l.NoBrowser {
		c.fail("device", "give one of --device and --no-browser", "a device code needs no browser here")
	}
}
