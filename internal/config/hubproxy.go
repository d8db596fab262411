package config

import (
	"net"
	"strconv"
	"strings"
)

// HubProxy is the own proxy of a hub in the operator's cluster. Where it is set, Proxies of
// the operator's hub use it and get no proxy of their own.
type HubProxy struct {
	Service     string // NAME.NAMESPACE[.svc[.DOMAIN]]:PORT; empty for none
	Credentials string // NAMESPACE/NAME of the Secret that has the hub's credentials file
}

// clusterDomain is the domain of a cluster's services where nobody says another.
const clusterDomain = "cluster.local"

// Address returns the whole name of the Service, as other names may point to it, and its
// port. It is empty and 0 where no Service is set.
func (h HubProxy) Address() (host string, port int) {
	host, text, err := net.SplitHostPort(h.Service)
	if err != nil {
		return "", 0
	}
	port, err = strconv.Atoi(text)
	labels := strings.Split(host, ".")
	switch {
	case err != nil || port < 1 || port > 65535:
		return "", 0
	case len(labels) == 2:
		host += ".svc." + clusterDomain
	case len(labels) == 3 && labels[2] == "svc":
		host += "." + clusterDomain
	case len(labels) < 4 || labels[2] != "svc":
		return "", 0
	}
	return host, port
}

// Secret returns where the Secret is.
func (h HubProxy) Secret() (namespace, name string) {
	namespace, name, _ = strings.Cut(h.Credentials, "/")
	return namespace, name
}

func (h *HubProxy) fields() []*Field {
	return []*Field{
		text("hub-proxy-service", "SERVICE:PORT", &h.Service, "Service of the own proxy of the hub, in this cluster, which Proxies of this hub use instead of one of their own: NAME.NAMESPACE:PORT, "+
			"or NAME.NAMESPACE.svc.DOMAIN:PORT where services are not in cluster.local"),
		text("hub-proxy-credentials-secret", "NAMESPACE/NAME", &h.Credentials, "Secret of which the hub mounts the key credentials as its --credentials-file; the operator keeps a line for each Proxy there"),
	}
}

func (h *HubProxy) check(c *checker, connectURL string) {
	if h.Service == "" && h.Credentials == "" {
		return
	}
	if h.Service == "" || h.Credentials == "" {
		c.fail("hub-proxy-service", "give both or neither", "the hub's proxy and the Secret of its passwords belong together, and one of --hub-proxy-service and --hub-proxy-credentials-secret is not set")
		return
	}
	if connectURL == "" {
		c.fail("hub-proxy-service", "give --connect-url", "--connect-url does not say which hub that is")
	}
	host, _ := h.Address()
	if host == "" {
		c.fail("hub-proxy-service", "write NAME.NAMESPACE:PORT, for example postern-hub.postern:3128", "%q is not a Service and its port", h.Service)
	} else {
		c.host("hub-proxy-service", host)
	}
	namespace, name := h.Secret()
	if namespace == "" || name == "" || strings.Contains(name, "/") {
		c.fail("hub-proxy-credentials-secret", "write NAMESPACE/NAME, for example postern/postern-proxies", "%q is not the place of a Secret", h.Credentials)
		return
	}
	c.name("hub-proxy-credentials-secret", "namespace", namespace)
	c.host("hub-proxy-credentials-secret", name)
}
