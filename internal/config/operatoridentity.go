package config

import "postern.dev/postern/internal/controlplane"

// OperatorIdentity is how an operator gives pods identity tokens. Without ControlPlane it
// gives none.
type OperatorIdentity struct {
	ControlPlane string   // name of the control plane that the cluster is
	Scope        string   // SPACE/GROUP of the control plane, for subjects that are scoped to a group; may be empty
	URL          string   // of the hub or issuer that makes the tokens; empty for the hub of ConnectURL
	CAFile       string   // PEM file with its CA; empty for that of the hub
	CAPin        string   // of its CA
	TokenFile    string   // token by which the operator asks: a robot's, or at an issuer that runs alone that of its service account
	Organization string   // account in subjects; empty for the operator's organization
	Audiences    []string // of tokens of pods that name none; none: nobody but the issuer accepts them
	Namespaces   []string // whose pods get tokens
}

func defaultOperatorIdentity() OperatorIdentity {
	return OperatorIdentity{Namespaces: []string{"crossplane-system", "upbound-system"}}
}

// On reports whether pods are given tokens.
func (o *OperatorIdentity) On() bool { return o.ControlPlane != "" }

// Ref returns the control plane with its scope. The settings are checked.
func (o *OperatorIdentity) Ref() controlplane.Ref {
	name := o.ControlPlane
	if o.Scope != "" {
		name = o.Scope + "/" + name
	}
	r, _ := controlplane.ParseRef(name) // check did it
	return r
}

func (o *OperatorIdentity) fields() []*Field {
	return []*Field{
		text("identity-control-plane", "NAME", &o.ControlPlane, "name of this control plane in identity tokens; without it, pods get none"),
		text("identity-scope", "SPACE/GROUP", &o.Scope, "space and group of this control plane, for identity tokens whose subject is scoped to a group"),
		text("identity-url", "URL", &o.URL, "hub or issuer that makes identity tokens; without it, the hub of --connect-url"),
		text("identity-ca-file", "FILE", &o.CAFile, "CA certificate of --identity-url; without it and --identity-ca-pin, that of the hub"),
		text("identity-ca-pin", "PIN", &o.CAPin, "fingerprint of the CA of --identity-url"),
		text("identity-token-file", "FILE", &o.TokenFile, "token by which identity tokens are asked for: of a robot that may speak for this control plane, or of the operator's service account at an issuer that runs alone; "+
			"read again each time"),
		text("identity-organization", "ORG", &o.Organization, "account in identity tokens; without it, --organization"),
		list("identity-audience", "AUDIENCE", &o.Audiences, "audience of identity tokens of pods that name none; without it, only the issuer accepts these"),
		list("identity-namespace", "NAMESPACE", &o.Namespaces, "namespace whose pods get identity tokens: whoever may make pods there can be any provider"),
	}
}

func (o *OperatorIdentity) check(c *checker, connectURL string) {
	if !o.On() {
		if o.TokenFile != "" || o.Scope != "" || o.URL != "" {
			c.fail("identity-control-plane", "name the control plane that this cluster is", "is not set, and other settings of identity tokens are")
		}
		return
	}
	name := o.ControlPlane
	if o.Scope != "" {
		name = o.Scope + "/" + name
	}
	if r, err := controlplane.ParseRef(name); err != nil {
		c.fail("identity-control-plane", "", "%v", err)
	} else if r.Scoped() != (o.Scope != "") {
		c.fail("identity-control-plane", "give space and group with --identity-scope", "%q is not the name alone", o.ControlPlane)
	}
	c.require("identity-token-file", o.TokenFile)
	if o.URL == "" && connectURL == "" {
		c.fail("identity-url", "give it, or --connect-url", "is not set, and neither is the hub")
	}
	if o.URL != "" {
		c.connectURL("identity-url", o.URL)
	}
	if o.Organization != "" {
		c.name("identity-organization", "organization", o.Organization)
	}
	for _, n := range o.Namespaces {
		c.name("identity-namespace", "namespace", n)
	}
}
