// Package selection decides which Proxy a pod belongs to. It is pure: the webhook asks it about a
// pod that is being made, and the evictor about pods that run, and both get the same answer.
package selection

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// What pods carry.
const (
	// AnnotationInject is "false" on pods that want none of it, whatever selects them.
	AnnotationInject = "proxy.postern.dev/inject"
	// AnnotationInjected names the Proxy, NAMESPACE/NAME, that a pod was pointed to when it was made.
	AnnotationInjected = "proxy.postern.dev/injected"
	// AnnotationAgent is the agent of that Proxy, at that time.
	AnnotationAgent = "proxy.postern.dev/agent"
	// LabelProxy is on everything that the operator makes for a Proxy, the proxy's own pods among it.
	LabelProxy = "postern.dev/proxy"
)

// Key names a Proxy. Two groups serve that kind, so that a group is part of the name.
type Key struct {
	Group, Namespace, Name string
}

// Route is the Proxy's name as pods carry it: NAMESPACE/NAME.
func (k Key) Route() string { return k.Namespace + "/" + k.Name }

// String names the Proxy for people.
func (k Key) String() string { return k.Route() + " (" + k.Group + ")" }

// Proxy is as much of a Proxy as the choice needs.
type Proxy struct {
	Key
	Created  time.Time
	Agent    string          // the agent's ID; empty as long as it has none
	Selector labels.Selector // of pods; nil selects none
	Deleting bool            // it is going away, and selects nothing any more
	Serving  bool            // a replica of the proxy is ready, so that pods may be moved to it
}

// Rules say which pods may be selected at all. The zero value lets the label selectors decide.
type Rules struct {
	// Excluded are namespaces none of whose pods are touched: the system's and the operator's own.
	Excluded []string
	// Only are the namespaces whose pods may be selected; empty for all that are not excluded.
	Only []string
}

// Covers reports whether pods of a namespace may be touched.
func (r Rules) Covers(namespace string) bool {
	if slices.Contains(r.Excluded, namespace) {
		return false
	}
	return len(r.Only) == 0 || slices.Contains(r.Only, namespace)
}

// OptedOut reports whether a pod wants not to be selected. The pods of proxies never are: they
// would be their own client.
func OptedOut(pod metav1.Object) bool {
	if pod.GetLabels()[LabelProxy] != "" {
		return true
	}
	return strings.EqualFold(strings.TrimSpace(pod.GetAnnotations()[AnnotationInject]), "false")
}

// Selecting returns the Proxies that select a pod of a namespace, the one that wins first: the
// oldest, or of several of one second the first by name. The namespace is given apart, since a pod
// that is being made may not say its own.
func (r Rules) Selecting(namespace string, pod metav1.Object, proxies []Proxy) []Proxy {
	if !r.Covers(namespace) || OptedOut(pod) {
		return nil
	}
	var all []Proxy
	set := labels.Set(pod.GetLabels())
	for _, p := range proxies {
		if !p.Deleting && p.Selector != nil && !p.Selector.Empty() && p.Selector.Matches(set) {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, older)
	return all
}

func older(a, b Proxy) int {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Group, b.Group))
}

// Injected says which route a pod was given when it was made, and to which agent; both are empty
// if none was.
func Injected(pod metav1.Object) (route, agent string) {
	a := pod.GetAnnotations()
	return a[AnnotationInjected], a[AnnotationAgent]
}

// maxName is the longest name of an object, in bytes.
const maxName = 253

// SecretPrefix begins the names of all Secrets that hold a copy of a proxy's password.
const SecretPrefix = "postern-proxy-"

// SecretName is the name of the Secret that holds the password of a Proxy in the namespaces of its
// pods. The dot keeps two Proxies apart whose names would run together: namespaces have none.
func SecretName(k Key) string {
	name := SecretPrefix + k.Namespace + "." + k.Name
	if len(name) <= maxName {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return strings.TrimRight(name[:maxName-17], "-.") + "-" + hex.EncodeToString(sum[:8])
}
