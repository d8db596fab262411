package config

// Injection is how the operator points pods to proxies.
type Injection struct {
	Webhook       string   // HOST:PORT on which the API server asks about new pods; empty: pods are not touched
	Configuration string   // name of the MutatingWebhookConfiguration
	Service       string   // name of the webhook's Service, in the operator's namespace
	Secret        string   // name of the Secret with its certificate, there too
	CertManager   bool     // cert-manager looks after Secret and configuration
	Excluded      []string // namespaces whose pods are left alone, beside the system's and the operator's own
	Only          []string // the namespaces whose pods may be selected; empty: all others
	NoProxy       []string // what pods never reach through a proxy
}

// SystemNamespaces are those whose pods the operator never touches.
func SystemNamespaces() []string { return []string{"kube-system", "kube-public", "kube-node-lease"} }

// DefaultInjection returns the settings of a new operator.
func DefaultInjection() Injection {
	return Injection{Configuration: "postern-operator", Service: "postern-operator-webhook", Secret: "postern-operator-webhook"}
}

func (i *Injection) fields() []*Field {
	return []*Field{
		text("webhook", "ADDR", &i.Webhook, "listen on this address for the API server's questions about new pods, such as :9443; without it, no pod is pointed to a proxy"),
		text("webhook-configuration", "NAME", &i.Configuration, "MutatingWebhookConfiguration by which the API server asks; the operator writes its CA there"),
		text("webhook-service", "NAME", &i.Service, "Service in the operator's namespace by which it is asked"),
		text("webhook-secret", "NAME", &i.Secret, "Secret in the operator's namespace for the webhook's certificate"),
		toggle("webhook-cert-manager", &i.CertManager, "leave certificate and CA to cert-manager, and serve what is in the Secret"),
		list("exclude-namespace", "NAMESPACE", &i.Excluded, "namespace whose pods are left alone, beside kube-system, kube-public, kube-node-lease and the operator's own"),
		list("pod-namespace", "NAMESPACE", &i.Only, "namespace whose pods may be selected; without it, those of all that are not excluded"),
		list("no-proxy", "ENTRY", &i.NoProxy, "host, domain, address or range of addresses that pods do not reach through their proxy"),
	}
}

func (i *Injection) check(c *checker) {
	if i.Webhook == "" {
		return
	}
	c.listenAddr("webhook", i.Webhook)
	c.require("webhook-configuration", i.Configuration)
	c.require("webhook-service", i.Service)
	c.require("webhook-secret", i.Secret)
	for _, n := range i.Excluded {
		c.name("exclude-namespace", "namespace", n)
	}
	for _, n := range i.Only {
		c.name("pod-namespace", "namespace", n)
	}
}
