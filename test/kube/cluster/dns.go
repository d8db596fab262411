//go:build linux

package cluster

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"

	"postern.dev/postern/test/kube/pki"
	"postern.dev/postern/test/kube/proc"
)

const corefile = `.:53 {
    bind %s
    errors
    health 127.0.0.1:8080
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa {
        kubeconfig %s
        pods insecure
    }
    cache 5
}
`

// dnsObjects are what a cluster's DNS has in the API. CoreDNS runs as a process of the node, so
// the service has no selector and its one endpoint is the node.
const dnsObjects = `
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  clusterIP: ` + DNSIP + `
  ports:
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns-node, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints:
- {addresses: [%s], conditions: {ready: true}}
ports:
- {name: dns, port: 53, protocol: UDP}
- {name: dns-tcp, port: 53, protocol: TCP}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: system:coredns}
rules:
- {apiGroups: [""], resources: [services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: system:coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:coredns}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: system:coredns}
`

// startDNS starts CoreDNS and waits until the API server's name resolves through the service.
func (c *Cluster) startDNS(ctx context.Context) error {
	manifest := c.path("dns.yaml")
	if err := os.WriteFile(manifest, fmt.Appendf(nil, dnsObjects, c.site.nodeIP), 0o600); err != nil {
		return fmt.Errorf("write the objects of the cluster's DNS: %w", err)
	}
	err := proc.Wait(ctx, "the objects of the cluster's DNS are made", func(ctx context.Context) error {
		_, err := c.KubectlInside(ctx, "apply", "-f", manifest)
		return err
	}, c.api)
	if err != nil {
		return err
	}
	kubeconfig, err := c.userKubeconfig("coredns", pki.Subject{Name: "system:coredns"})
	if err != nil {
		return err
	}
	name := c.path("Corefile")
	if err := os.WriteFile(name, fmt.Appendf(nil, corefile, c.site.nodeIP, kubeconfig), 0o600); err != nil {
		return fmt.Errorf("write CoreDNS's configuration: %w", err)
	}
	dns, err := c.daemon(c.bins.Path("coredns"), "-conf", name)
	if err != nil {
		return err
	}
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return c.box.DialContext(ctx, network, net.JoinHostPort(DNSIP, "53"))
	}}
	return proc.Wait(ctx, "the cluster's DNS knows the API server", func(ctx context.Context) error {
		addresses, err := resolver.LookupHost(ctx, "kubernetes.default.svc.cluster.local.")
		if err == nil && !slices.Contains(addresses, serviceIP) {
			err = fmt.Errorf("it resolves to %v instead of %s", addresses, serviceIP)
		}
		return err
	}, dns)
}
