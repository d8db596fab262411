package controller

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/presence"
)

// TestThroughAnHTTPProxy checks what a proxy's pods are told of an HTTP proxy on their way to the
// hub, that its password stays in its Secret, and that the NetworkPolicy lets them out to it alone.
func TestThroughAnHTTPProxy(t *testing.T) {
	secret := &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "way"}, Key: "url"}}
	for _, tt := range []struct {
		name   string
		change func(*config.ProxyPods)
		env    []corev1.EnvVar
		port   int
		cidr   string
	}{
		{"none", func(*config.ProxyPods) {}, nil, 8443, "10.0.0.7/32"},
		{"a name", func(p *config.ProxyPods) { p.HTTPProxy = "http://proxy.example.org:8080" }, []corev1.EnvVar{{Name: "AGENT_PROXY", Value: "http://proxy.example.org:8080"}}, 8080, ""},
		{"an address", func(p *config.ProxyPods) { p.HTTPProxy = "http://192.0.2.1" }, []corev1.EnvVar{{Name: "AGENT_PROXY", Value: "http://192.0.2.1"}}, 80, "192.0.2.1/32"},
		{"a Secret", func(p *config.ProxyPods) { p.HTTPProxySecret = "way/url" }, []corev1.EnvVar{{Name: "AGENT_PROXY", ValueFrom: secret}}, 3128, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pods := config.DefaultOperator().Pods
			tt.change(&pods)
			all, err := desired(&v1alpha1.Proxy{}, Hub{Hub: presence.Hub{ConnectURL: "tls://10.0.0.7:8443"}, Organization: "x"}, pods, ProxyPort)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range all {
				switch o := o.(type) {
				case *appsv1.Deployment:
					if diff := cmp.Diff(append([]corev1.EnvVar{o.Spec.Template.Spec.Containers[0].Env[0]}, tt.env...), o.Spec.Template.Spec.Containers[0].Env); diff != "" {
						t.Error(diff)
					}
				case *networkingv1.NetworkPolicy:
					hub := o.Spec.Egress[0]
					cidr := ""
					if len(hub.To) > 0 {
						cidr = hub.To[0].IPBlock.CIDR
					}
					if len(hub.Ports) != 1 || hub.Ports[0].Port.IntValue() != tt.port || cidr != tt.cidr {
						t.Errorf("egress %+v, want %s at port %d", hub, tt.cidr, tt.port)
					}
				}
			}
		})
	}
}

// TestTolerations reads taints as people write them.
func TestTolerations(t *testing.T) {
	got := tolerations([]string{"dedicated", "dedicated=proxies", "dedicated=proxies:NoSchedule", "gpu:NoExecute"})
	want := []corev1.Toleration{
		{Key: "dedicated", Operator: corev1.TolerationOpExists},
		{Key: "dedicated", Operator: corev1.TolerationOpEqual, Value: "proxies"},
		{Key: "dedicated", Operator: corev1.TolerationOpEqual, Value: "proxies", Effect: corev1.TaintEffectNoSchedule},
		{Key: "gpu", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
