package config

import (
	"fmt"
	"net"
	"net/url"
	"strconv"

	"postern.dev/postern/internal/wire"
)

// Where a pod finds what its service account needs.
const (
	podTokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	podCAFile    = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
)

// Kubernetes is how an agent reaches the API server of its cluster, for the gateway.
type Kubernetes struct {
	API           string // https://HOST[:PORT]; empty: there is none
	TokenFile     string // of the agent's service account, read again when it changes
	CAFile        string // what verifies the API server; empty: the system's roots
	ServiceCAFile string // what verifies services, beside CAFile; may be empty

	// OfPod tells that they are those of the pod that the agent runs in.
	OfPod bool
}

func (k *Kubernetes) fields() []*Field {
	return []*Field{
		text("kubernetes-api", "URL", &k.API, "API server of the cluster, https://HOST[:PORT], for the gateway and the rule kubernetes; without it, in a pod, that of the pod"),
		text("kubernetes-token-file", "FILE", &k.TokenFile, "token of the service account that the gateway acts with; without --kubernetes-api, in a pod, that of the pod"),
		text("kubernetes-ca-file", "FILE", &k.CAFile, "CA certificate of the API server; without --kubernetes-api, in a pod, that of the pod; else the system's"),
		text("service-ca-file", "FILE", &k.ServiceCAFile, "CA certificate of services that are reached with https through the gateway, beside that of the API server"),
	}
}

// complete takes a pod's API server, if no other is named.
func (k *Kubernetes) complete(env Environment) {
	host, _ := env.LookupEnv("KUBERNETES_SERVICE_HOST")
	if k.API != "" || host == "" {
		return
	}
	port, _ := env.LookupEnv("KUBERNETES_SERVICE_PORT")
	if port == "" {
		port = "443"
	}
	k.OfPod = true
	k.API = "https://" + net.JoinHostPort(host, port)
	if k.TokenFile == "" {
		k.TokenFile = podTokenFile
	}
	if k.CAFile == "" {
		k.CAFile = podCAFile
	}
}

// check checks the settings of an agent; gateway tells that it needs them.
func (k *Kubernetes) check(c *checker, gateway bool) {
	if k.API != "" {
		if _, err := k.Address(); err != nil {
			c.fail("kubernetes-api", "", "%v", err)
		}
	}
	if !gateway {
		return
	}
	if k.API == "" {
		c.fail("kubernetes-api", "outside of a pod, give it with --kubernetes-token-file and --kubernetes-ca-file", "is not set, and the gateway needs an API server")
	} else if k.TokenFile == "" {
		c.fail("kubernetes-token-file", "", "is not set, and the gateway needs a service account")
	}
}

// Address returns where the API server listens; an error if it is not said well.
func (k *Kubernetes) Address() (wire.Target, error) {
	u, err := url.Parse(k.API)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return wire.Target{}, fmt.Errorf("%q is not the URL of an API server: want https://HOST[:PORT]", redactURL(k.API))
	}
	port := uint64(443)
	if u.Port() != "" {
		if port, err = strconv.ParseUint(u.Port(), 10, 16); err != nil {
			return wire.Target{}, fmt.Errorf("%q has no good port", k.API)
		}
	}
	return wire.TCP(u.Hostname(), uint16(port))
}

func gatewayField(p *bool) *Field {
	return toggle("gateway", p, "let the hub's gateway reach the cluster's API server, as the users that the hub vouches for, with the rights of this agent's service account")
}
