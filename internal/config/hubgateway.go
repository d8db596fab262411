package config

import (
	"fmt"
	"strconv"
	"strings"

	"postern.dev/postern/internal/identity"
)

// Gateway is how a hub lets callers reach the API servers of clusters by URL, and under
// which names the clusters see them.
type Gateway struct {
	GatewayListen       string   // HOST:PORT of a listener for the gateway alone; empty for none beside the one port
	GatewayCertFile     string   // PEM chain that it presents; empty for the hub's own certificate. Reloaded when it changes
	GatewayKeyFile      string   // its key
	GatewayNames        []string // further names in the hub's own certificate
	GatewayClientCAFile string   // PEM with the authorities of client certificates at GatewayListen; empty: none count
	GatewayUserPrefix   string   // before users' names in clusters
	GatewayGroupPrefix  string   // before groups' names in clusters
	GatewayReserved     []string // beginnings of names that users and groups may not have in clusters
	GatewayTokens       []string // clusters whose tokens are good: see ParseTokenCluster
	GatewayOwn          string   // ORG:AGENT of the cluster that the hub runs in; empty for none
	GatewayPass         []string // ORG:AGENT of clusters that get their own tokens as they are
	GatewayIssuers      []Issuer // whose ID tokens are good, beside those of the provider that people sign in with
	GatewayShort        int      // requests of one caller at once
	GatewayLong         int      // watches and streams of one caller at once
}

func defaultGateway() Gateway {
	return Gateway{
		GatewayReserved: []string{"system:", "cluster:", "kubeadm:", "kubernetes-admin", "postern:"},
		GatewayShort:    400, GatewayLong: 1000,
	}
}

func (g *Gateway) fields() []*Field {
	return []*Field{
		text("gateway-listen", "ADDR", &g.GatewayListen, "serve the gateway on this address too, and nothing else there"),
		text("gateway-tls-cert-file", "FILE", &g.GatewayCertFile, "certificate chain to present there instead of the hub's; reloaded when it changes"),
		text("gateway-tls-key-file", "FILE", &g.GatewayKeyFile, "key of --gateway-tls-cert-file"),
		list("gateway-additional-names", "NAME", &g.GatewayNames, "further host name or IP address for the hub's own certificate, under which clients reach the gateway"),
		text("gateway-client-ca-file", "FILE", &g.GatewayClientCAFile, "CA whose client certificates say who calls at --gateway-listen: the common name is the user, organizations are groups"),
		text("gateway-user-prefix", "PREFIX", &g.GatewayUserPrefix, "put before users' names in clusters"),
		text("gateway-group-prefix", "PREFIX", &g.GatewayGroupPrefix, "put before groups' names in clusters"),
		list("gateway-reserved", "PREFIX", &g.GatewayReserved, "beginning of names that the hub's users may not have in clusters; groups with such names are not told"),
		list("gateway-token-cluster", "NAME[=ORG:AGENT]", &g.GatewayTokens, "cluster whose Kubernetes tokens the gateway takes, for the clusters of the same organization, as users cluster:NAME:…; "+
			"without an agent the cluster that the hub itself runs in"),
		text("gateway-own-cluster", "ORG:AGENT", &g.GatewayOwn, "agent of the cluster that the hub itself runs in: there, the owners of its tokens are called as they are, without cluster:NAME:"),
		list("gateway-pass-through", "ORG:AGENT", &g.GatewayPass, "cluster that gets its own Kubernetes tokens as they are"),
		gatewayIssuersField(),
		number("gateway-requests-per-user", &g.GatewayShort, "how many requests of one caller the gateway carries at once; 0 for any number"),
		number("gateway-streams-per-user", &g.GatewayLong, "how many watches, followed logs, exec and port-forwards; 0 for any number"),
	}
}

// TokenCluster is a cluster whose Kubernetes tokens the gateway takes.
type TokenCluster struct {
	Name         string // in the names of users
	Organization string // for whose clusters the tokens are good
	Agent        string // that is asked about tokens; empty: the cluster that the hub runs in
}

// ParseTokenCluster reads NAME=ORG:AGENT, or NAME or NAME=ORG for the cluster that the
// hub itself runs in.
func ParseTokenCluster(s string) (TokenCluster, error) {
	name, at, _ := strings.Cut(s, "=")
	organization, agent, both := strings.Cut(at, ":")
	t := TokenCluster{Name: name, Organization: organization, Agent: agent}
	if t.Organization == "" && !both {
		t.Organization = DefaultOrganization
	}
	err := identity.ValidateName("cluster", t.Name)
	if err == nil {
		err = identity.ValidateName("organization", t.Organization)
	}
	if err == nil && both {
		err = identity.ValidateName("agent ID", t.Agent)
	}
	if err != nil {
		return t, fmt.Errorf("%.200q: %w; want NAME=ORG:AGENT, or NAME for the cluster that the hub runs in", s, err)
	}
	return t, nil
}

// ParseCluster reads ORG:AGENT.
func ParseCluster(s string) (organization, agent string, err error) {
	organization, agent, _ = strings.Cut(s, ":")
	if err = identity.ValidateName("organization", organization); err == nil {
		err = identity.ValidateName("agent ID", agent)
	}
	if err != nil {
		err = fmt.Errorf("%.200q: %w; want ORG:AGENT", s, err)
	}
	return organization, agent, err
}

func (g *Gateway) check(c *checker) {
	if g.GatewayListen != "" {
		c.listenAddr("gateway-listen", g.GatewayListen)
	}
	for setting, value := range map[string]string{"gateway-tls-cert-file": g.GatewayCertFile, "gateway-client-ca-file": g.GatewayClientCAFile} {
		if value != "" && g.GatewayListen == "" {
			c.fail(setting, "give --gateway-listen too", "is for the gateway's own listener, and there is none")
		}
	}
	if (g.GatewayCertFile == "") != (g.GatewayKeyFile == "") {
		c.fail("gateway-tls-cert-file", "give both or neither", "a certificate and its key belong together, and one of --gateway-tls-cert-file and --gateway-tls-key-file is not set")
	}
	for _, name := range g.GatewayNames {
		c.host("gateway-additional-names", name)
	}
	names := make(map[string]bool)
	for _, s := range g.GatewayTokens {
		t, err := ParseTokenCluster(s)
		if err != nil {
			c.fail("gateway-token-cluster", "", "%v", err)
		} else if names[t.Name] {
			c.fail("gateway-token-cluster", "give each cluster a name of its own", "there are two clusters %s, whose users would be the same", t.Name)
		}
		names[t.Name] = true
	}
	if g.GatewayOwn != "" {
		if _, _, err := ParseCluster(g.GatewayOwn); err != nil {
			c.fail("gateway-own-cluster", "", "%v", err)
		}
	}
	for _, s := range g.GatewayPass {
		if _, _, err := ParseCluster(s); err != nil {
			c.fail("gateway-pass-through", "", "%v", err)
		}
	}
}

// number makes the field of a setting that is a whole number from 0 on.
func number(name string, p *int, usage string) *Field {
	return &Field{
		Name: name, Usage: usage, kind: "N",
		set: func(s string) error {
			n, err := strconv.Atoi(strings.TrimSpace(s))
			if err != nil || n < 0 {
				return fmt.Errorf("%q is not a whole number from 0 on", s)
			}
			*p = n
			return nil
		},
		get: func() string { return strconv.Itoa(*p) },
	}
}
