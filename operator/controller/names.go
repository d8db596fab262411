package controller

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/selection"
)

// Names that pods, people and other programs may rely on.
const (
	// FieldManager is who the operator is as it applies objects.
	FieldManager = "postern-operator"
	// Finalizer keeps a Proxy until what was done for it is undone.
	Finalizer = "postern.dev/proxy"
	// AnnotationAgentID keeps the agent's ID that was made up for a Proxy, so that it outlives a
	// lost status.
	AnnotationAgentID = "postern.dev/agent-id"
	// ProxyPort is where a proxy takes connections of HTTP clients, and its Service unless ServicePort
	// says otherwise.
	ProxyPort = 3128

	metricsPort    = 9090
	suffix         = "-proxy"
	keyCredentials = "credentials"
	keyPassword    = "password"
	keyCA          = "ca.crt"
)

// maxLabel is the length of a label's value, in bytes.
const maxLabel = 63

// ObjectName is the name of all that is made for a Proxy, in its namespace.
func ObjectName(proxy string) string { return proxy + suffix }

// Host returns what tells host and port of a Proxy's proxy, as pods of the cluster reach it.
func Host(h config.HubProxy) func(namespace, proxy string) string {
	port := ServicePort(h)
	return func(namespace, proxy string) string {
		return fmt.Sprintf("%s.%s.svc:%d", ObjectName(proxy), namespace, port)
	}
}

// labelValue is the value of selection.LabelProxy: NAMESPACE.NAME, with a digest in place of its
// end where that is too long.
func labelValue(namespace, name string) string {
	value := namespace + "." + name
	if len(value) <= maxLabel {
		return value
	}
	sum := sha256.Sum256([]byte(value))
	return strings.TrimRight(value[:maxLabel-11], "-.") + "-" + hex.EncodeToString(sum[:5])
}

// selectorLabels choose the pods of a Proxy's proxy.
func selectorLabels(p v1alpha1.Object) map[string]string {
	return map[string]string{
		"app.kubernetes.io/name":      "postern-proxy",
		"app.kubernetes.io/component": "proxy",
		selection.LabelProxy:          labelValue(p.GetNamespace(), p.GetName()),
	}
}

// objectLabels are on everything that is made for a Proxy.
func objectLabels(p v1alpha1.Object) map[string]string {
	all := selectorLabels(p)
	all["app.kubernetes.io/instance"] = p.GetName()
	all["app.kubernetes.io/managed-by"] = FieldManager
	return all
}
