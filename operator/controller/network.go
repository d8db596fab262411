package controller

import (
	"net/netip"
	"net/url"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/operator/api/v1alpha1"
)

// httpProxy returns port and address, if it is one and no name, of the HTTP proxy on the way to the hub.
func httpProxy(pods config.ProxyPods) (address netip.Addr, port int) {
	u, err := url.Parse(pods.HTTPProxy)
	if err != nil || pods.HTTPProxy == "" {
		return netip.Addr{}, pods.HTTPProxyPort
	}
	port = map[string]int{"http": 80, "https": webPort}[u.Scheme]
	if p, err := strconv.Atoi(u.Port()); err == nil {
		port = p
	}
	address, _ = netip.ParseAddr(u.Hostname()) // a name has none
	return address.Unmap(), port
}

// Ports of DNS. A NetworkPolicy is about the port of the pod that answers, which is another one in
// some clusters (OpenShift's).
const (
	dnsPort    = 53
	dnsPodPort = 5353
)

// networkPolicy lets in the pods that the Proxy selects, of all namespaces, and lets the proxy out to
// the hub, or the HTTP proxy before it, and to DNS only. A hub that is known by name may be at any address, at its port.
func networkPolicy(p v1alpha1.Object, h Hub, pods config.ProxyPods) *networkingv1.NetworkPolicy {
	tcp, udp := corev1.ProtocolTCP, corev1.ProtocolUDP
	port := func(protocol *corev1.Protocol, n int) networkingv1.NetworkPolicyPort {
		number := intstr.FromInt(n)
		return networkingv1.NetworkPolicyPort{Protocol: protocol, Port: &number}
	}
	selected := p.Common().PodSelector.LabelSelector()
	ingress := []networkingv1.NetworkPolicyIngressRule{{
		From:  []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{}, PodSelector: selected}},
		Ports: []networkingv1.NetworkPolicyPort{port(&tcp, ProxyPort)},
	}}
	if pods.MetricsNamespace != "" {
		ingress = append(ingress, networkingv1.NetworkPolicyIngressRule{
			From: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{
				MatchLabels: map[string]string{corev1.LabelMetadataName: pods.MetricsNamespace}}}},
			Ports: []networkingv1.NetworkPolicyPort{port(&tcp, metricsPort)},
		})
	}
	address, at := h.endpoint()
	through := pods.HTTPProxy != "" || pods.HTTPProxySecret != ""
	if through {
		address, at = httpProxy(pods)
	}
	hub := networkingv1.NetworkPolicyEgressRule{Ports: []networkingv1.NetworkPolicyPort{port(&tcp, at)}}
	if !through && at != hubPort && !address.IsValid() {
		// A Service in front of a hub may have another port than the hub itself, which is what counts.
		hub.Ports = append(hub.Ports, port(&tcp, hubPort))
	}
	if address.IsValid() {
		hub.To = []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: cidr(address)}}}
	}
	return &networkingv1.NetworkPolicy{
		TypeMeta: typeMeta("networking.k8s.io/v1", "NetworkPolicy"), ObjectMeta: objectMeta(p),
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: selectorLabels(p)},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
			Ingress:     ingress,
			Egress: []networkingv1.NetworkPolicyEgressRule{hub, {Ports: []networkingv1.NetworkPolicyPort{
				port(&udp, dnsPort), port(&tcp, dnsPort), port(&udp, dnsPodPort), port(&tcp, dnsPodPort),
			}}},
		},
	}
}
