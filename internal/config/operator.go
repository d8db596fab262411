package config

import (
	"net/url"
	"slices"
	"strings"
)

// Bounds of the number of proxy pods of a Proxy.
const minProxyReplicas, maxProxyReplicas = 1, 20

// Operator is the settings of the operator in a Kubernetes cluster.
type Operator struct {
	// Where the hub is that Proxies use which do not say it themselves. All may be empty.
	ConnectURL   string
	CAFile       string // PEM file with the hub's CA; the operator gives its content to the proxies
	CAPin        string // "sha256:HEX" of the hub's CA, instead of CAFile or in addition
	Organization string

	HubProxy  HubProxy
	Pods      ProxyPods
	Injection Injection
	Identity  OperatorIdentity

	Namespace       string   // the operator's own
	WatchNamespaces []string // where Proxies count; empty: everywhere
	CompatUpbound   bool     // Proxies of group spaces.upbound.io count too
	Kubeconfig      string   // outside of a cluster; empty: the pod's own service account
	LeaderElect     bool     // of several operators, one acts

	Metrics string // HOST:PORT for /metrics, /healthz and /readyz; empty for none
	Log     Log
}

// ProxyPods is how the pods are made that run the proxies.
type ProxyPods struct {
	Image            string
	PullPolicy       string   // Always, IfNotPresent or Never
	PullSecrets      []string // names of Secrets in the Proxy's namespace
	Replicas         int
	Requests         []string // RESOURCE=QUANTITY
	Limits           []string // RESOURCE=QUANTITY
	NodeSelector     []string // LABEL=VALUE
	Tolerations      []string // KEY[=VALUE][:EFFECT]
	PriorityClass    string
	HTTPProxy        string // http://HOST:PORT on the way to the hub, without credentials; empty for none
	HTTPProxySecret  string // NAME/KEY of its URL, which may have credentials, in the Proxy's namespace; instead of HTTPProxy
	HTTPProxyPort    int    // of the URL in that Secret, for the NetworkPolicy
	MetricsNamespace string // the one namespace from which their metrics may be read; empty: none
}

// DefaultOperator returns an operator's settings before anything is configured.
func DefaultOperator() Operator {
	return Operator{
		Organization: DefaultOrganization,
		Pods: ProxyPods{
			PullPolicy: "IfNotPresent", Replicas: 2, HTTPProxyPort: 3128, Requests: []string{"cpu=50m", "memory=64Mi"}, Limits: []string{"memory=256Mi"},
		},
		Identity:    defaultOperatorIdentity(),
		Injection:   DefaultInjection(),
		LeaderElect: true,
		Log:         Log{Format: "auto", Level: "info"},
	}
}

func (o *Operator) fields() []*Field {
	all := []*Field{
		text("connect-url", "URL", &o.ConnectURL, "address of the hub, for Proxies that do not name one: tls://HOST[:4222], or wss://HOST[:443]"),
		text("ca-file", "FILE", &o.CAFile, "the hub's CA certificate, DIR/ca.crt on the hub; without it and --ca-pin the CAs of the proxy's image are trusted"),
		text("ca-pin", "PIN", &o.CAPin, "fingerprint of the hub's CA as the hub prints it (sha256:...), instead of --ca-file or in addition"),
		text("organization", "ORG", &o.Organization, "organization of the hub, for Proxies that do not name one").or("UPBOUND_ORG"),
	}
	all = append(all, o.HubProxy.fields()...)
	all = append(all, o.Pods.fields()...)
	all = append(all, o.Identity.fields()...)
	all = append(all, o.Injection.fields()...)
	all = append(all,
		text("namespace", "NAMESPACE", &o.Namespace, "namespace that the operator itself runs in").or("POD_NAMESPACE"),
		list("watch-namespace", "NAMESPACE", &o.WatchNamespaces, "namespace in which Proxies count; without it, all do"),
		toggle("compat-upbound", &o.CompatUpbound, "serve Proxies of group spaces.upbound.io too, whose CustomResourceDefinition must be there"),
		text("kubeconfig", "FILE", &o.Kubeconfig, "kubeconfig file, outside of a cluster; without it, the pod's own service account").or("KUBECONFIG"),
		toggle("leader-elect", &o.LeaderElect, "of several operators in a namespace, let one act"),
		text("metrics", "ADDR", &o.Metrics, "serve /metrics, /healthz and /readyz on this address, without authentication: prefer a network of your own"),
	)
	return append(all, o.Log.fields()...)
}

func (p *ProxyPods) fields() []*Field {
	return []*Field{
		text("proxy-image", "IMAGE", &p.Image, "image of the program postern, which the proxies run"),
		text("proxy-image-pull-policy", "POLICY", &p.PullPolicy, "when nodes pull that image: Always, IfNotPresent or Never"),
		list("proxy-image-pull-secret", "NAME", &p.PullSecrets, "Secret in the Proxy's namespace to pull that image with"),
		number("proxy-replicas", &p.Replicas, "how many pods run the proxy of a Proxy"),
		list("proxy-requests", "RESOURCE=QUANTITY", &p.Requests, "what a proxy pod requests of its node"),
		list("proxy-limits", "RESOURCE=QUANTITY", &p.Limits, "what a proxy pod may use at most"),
		list("proxy-node-selector", "LABEL=VALUE", &p.NodeSelector, "label of the nodes that proxy pods may run on"),
		list("proxy-toleration", "KEY[=VALUE][:EFFECT]", &p.Tolerations, "taint of nodes that proxy pods tolerate"),
		text("proxy-priority-class", "NAME", &p.PriorityClass, "priority class of proxy pods"),
		text("proxy-http-proxy", "URL", &p.HTTPProxy, "HTTP proxy through which proxy pods reach the hub, http://HOST:PORT"),
		text("proxy-http-proxy-secret", "NAME/KEY", &p.HTTPProxySecret, "Secret in the Proxy's namespace, and its key, with the URL of that HTTP proxy, which may hold a password"),
		number("proxy-http-proxy-port", &p.HTTPProxyPort, "port of the HTTP proxy in that Secret, for the NetworkPolicy"),
		text("proxy-metrics-namespace", "NAMESPACE", &p.MetricsNamespace, "namespace from which the metrics of proxy pods may be read; without it, from none"),
	}
}

func (o *Operator) fromFile() bool { return true }

func (o *Operator) complete(*Set, Environment) {}

func (o *Operator) check(c *checker) {
	if o.ConnectURL != "" {
		u := Uplink{ConnectURL: o.ConnectURL, CAFile: o.CAFile, CAPin: o.CAPin}
		u.check(c)
	} else {
		c.trust(o.CAPin)
	}
	if o.Organization != "" {
		c.name("organization", "organization", o.Organization)
	}
	o.HubProxy.check(c, o.ConnectURL)
	o.Pods.check(c)
	o.Identity.check(c, o.ConnectURL)
	o.Injection.check(c)
	if c.require("namespace", o.Namespace) {
		c.name("namespace", "namespace", o.Namespace)
	}
	for _, n := range o.WatchNamespaces {
		c.name("watch-namespace", "namespace", n)
	}
	if o.Metrics != "" {
		c.listenAddr("metrics", o.Metrics)
	}
	o.Log.check(c)
}

func (p *ProxyPods) check(c *checker) {
	c.require("proxy-image", p.Image)
	c.oneOf("proxy-image-pull-policy", p.PullPolicy, "Always", "IfNotPresent", "Never")
	if p.Replicas < minProxyReplicas || p.Replicas > maxProxyReplicas {
		c.fail("proxy-replicas", "", "%d is out of bounds: want between %d and %d", p.Replicas, minProxyReplicas, maxProxyReplicas)
	}
	for _, one := range []struct {
		setting string
		pairs   []string
	}{{"proxy-requests", p.Requests}, {"proxy-limits", p.Limits}, {"proxy-node-selector", p.NodeSelector}} {
		if i := slices.IndexFunc(one.pairs, func(s string) bool { key, _, ok := strings.Cut(s, "="); return !ok || key == "" }); i >= 0 {
			c.fail(one.setting, "", "%q is not of the form KEY=VALUE", one.pairs[i])
		}
	}
	p.checkWay(c)
	for _, one := range p.Tolerations {
		if _, effect, ok := strings.Cut(one, ":"); one == "" || strings.HasPrefix(one, "=") || strings.HasPrefix(one, ":") ||
			ok && !slices.Contains([]string{"NoSchedule", "PreferNoSchedule", "NoExecute"}, effect) {
			c.fail("proxy-toleration", "write KEY, KEY=VALUE or KEY=VALUE:EFFECT, where EFFECT is NoSchedule, PreferNoSchedule or NoExecute", "%q is no toleration", one)
		}
	}
	if p.MetricsNamespace != "" {
		c.name("proxy-metrics-namespace", "namespace", p.MetricsNamespace)
	}
}

// checkWay checks the HTTP proxy on the way to the hub.
func (p *ProxyPods) checkWay(c *checker) {
	const inSecret = "put the URL into a Secret, and name it with --proxy-http-proxy-secret"
	if p.HTTPProxy != "" {
		u, err := url.Parse(p.HTTPProxy)
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
			c.fail("proxy-http-proxy", "write http://HOST:PORT", "%q is not the address of an HTTP proxy", redactURL(p.HTTPProxy))
		case u.User != nil:
			c.fail("proxy-http-proxy", inSecret, "it holds a user or a password, which would stand in every pod")
		case p.HTTPProxySecret != "":
			c.fail("proxy-http-proxy", "give one of them", "--proxy-http-proxy-secret is given too")
		}
	}
	if p.HTTPProxySecret == "" {
		return
	}
	if name, key, ok := strings.Cut(p.HTTPProxySecret, "/"); !ok || name == "" || key == "" {
		c.fail("proxy-http-proxy-secret", "write NAME/KEY, such as http-proxy/url", "%q names no key of a Secret", p.HTTPProxySecret)
	}
	if p.HTTPProxyPort < 1 || p.HTTPProxyPort > 65535 {
		c.fail("proxy-http-proxy-port", "", "%d is no port", p.HTTPProxyPort)
	}
}
