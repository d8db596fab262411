package inject

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"postern.dev/postern/operator/selection"
)

// AnnotationNoProxy lists what else the pod reaches without the proxy, separated by commas.
const AnnotationNoProxy = "proxy.postern.dev/no-proxy"

// SecretKey is the key of the proxy's password in its Secret and the copies of it.
const SecretKey = "password"

// passwordVariable holds the password in containers. It has the name of no setting of Postern's
// programs, so that one of them in a container does not take it for its own.
const passwordVariable = "POSTERN_PROXY_PASSWORD"

// The variables that programs look at, in the order in which they are set.
var (
	pairs       = [][2]string{{"HTTP_PROXY", "http_proxy"}, {"HTTPS_PROXY", "https_proxy"}}
	noProxyPair = [2]string{"NO_PROXY", "no_proxy"}
	allPair     = [2]string{"ALL_PROXY", "all_proxy"}
)

// Route says where a pod is pointed to.
type Route struct {
	Proxy     selection.Key
	Agent     string   // the agent's ID, which is the proxy's user name
	Host      string   // the proxy's host and port, as pods resolve it
	Secret    string   // the Secret with the password, in the pod's namespace
	APIServer string   // host of this cluster's API server as pods know it: KUBERNETES_SERVICE_HOST
	NoProxy   []string // what else is never reached through the proxy; see CheckNoProxy
}

// EnvFrom says which of some variables the ConfigMaps and Secrets define that a container takes all
// variables from. It is asked only about containers that do.
type EnvFrom func(c *corev1.Container, names []string) (defined []string, err error)

// Plan says how a pod is changed. It consists of operations of JSON Patch that touch nothing but
// variables of ours and annotations of ours, so that fields of which this program does not know
// stay as they are.
type Plan struct {
	Operations []Operation
	Warnings   []string // for whoever makes the pod
}

// Operation is one of JSON Patch (RFC 6902).
type Operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// NewPlan returns how a pod is pointed to a route, or, if route is nil, freed from what an earlier
// plan left in it: a pod may be a copy of another one, variables and all. Done again, it finds
// nothing to do. It does not change the pod. envFrom may be nil; then nothing is defined there.
func NewPlan(pod *corev1.Pod, route *Route, envFrom EnvFrom) *Plan {
	p := &Plan{}
	extra := p.extra(pod, route)
	for i := range pod.Spec.InitContainers {
		p.container(fmt.Sprintf("/spec/initContainers/%d/env", i), &pod.Spec.InitContainers[i], route, extra, envFrom)
	}
	for i := range pod.Spec.Containers {
		p.container(fmt.Sprintf("/spec/containers/%d/env", i), &pod.Spec.Containers[i], route, extra, envFrom)
	}
	p.annotate(pod, route)
	if route != nil && pod.Spec.HostNetwork && pod.Spec.DNSPolicy != corev1.DNSClusterFirstWithHostNet {
		p.warn("the pod uses the node's network and DNS, where the name of the proxy may not be known: set dnsPolicy to ClusterFirstWithHostNet")
	}
	return p
}

func (p *Plan) warn(format string, args ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(format, args...))
}

// extra returns the entries of NO_PROXY that the operator or the pod adds.
func (p *Plan) extra(pod *corev1.Pod, route *Route) []string {
	if route == nil {
		return nil
	}
	list := slices.Clone(route.NoProxy)
	for entry := range strings.SplitSeq(pod.Annotations[AnnotationNoProxy], ",") {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		if err := checkEntry(entry); err != nil {
			p.warn("annotation %s: %v", AnnotationNoProxy, err)
			continue
		}
		list = append(list, entry)
	}
	return list
}

// container plans the variables of one container. Ours come last: a variable of the user's that
// has $(HTTP_PROXY) in it keeps its meaning, since Kubernetes replaces what stands before only.
func (p *Plan) container(path string, c *corev1.Container, route *Route, extra []string, envFrom EnvFrom) {
	first, count := ours(c.Env)
	theirs := slices.Concat(c.Env[:first], c.Env[first+count:])
	var want []corev1.EnvVar
	if route != nil {
		want = p.variables(c, theirs, route, extra, envFrom)
	}
	have := c.Env[first : first+count]
	if slices.EqualFunc(have, want, sameVariable) {
		return
	}
	for i := first + count - 1; i >= first; i-- {
		p.do("remove", fmt.Sprintf("%s/%d", path, i), nil)
	}
	if len(c.Env) == 0 {
		p.do("add", path, want)
		return
	}
	for _, v := range want {
		p.do("add", path+"/-", v)
	}
}

func (p *Plan) do(op, path string, value any) {
	p.Operations = append(p.Operations, Operation{Op: op, Path: path, Value: value})
}

// variables returns ours for one container, the password before those that use it. What the user
// set in one spelling is left alone in both: programs differ in which of them they prefer.
func (p *Plan) variables(c *corev1.Container, theirs []corev1.EnvVar, route *Route, extra []string, envFrom EnvFrom) []corev1.EnvVar {
	set, err := defined(c, theirs, envFrom)
	if err != nil {
		p.warn("container %s was not pointed to the proxy: %v", c.Name, err)
		return nil
	}
	if set[passwordVariable] {
		p.warn("container %s was not pointed to the proxy: it sets %s itself", c.Name, passwordVariable)
		return nil
	}
	if either(set, allPair) {
		p.warn("container %s was not pointed to the proxy: it sets ALL_PROXY itself", c.Name)
		return nil
	}
	url := fmt.Sprintf("http://%s:$(%s)@%s", route.Agent, passwordVariable, route.Host)
	vars := []corev1.EnvVar{{Name: passwordVariable, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: route.Secret}, Key: SecretKey,
	}}}}
	for _, pair := range pairs {
		if either(set, pair) {
			p.warn("container %s sets %s itself, which was left as it is", c.Name, pair[0])
			continue
		}
		vars = append(vars, corev1.EnvVar{Name: pair[0], Value: url}, corev1.EnvVar{Name: pair[1], Value: url})
	}
	if len(vars) == 1 {
		return nil // NO_PROXY without a proxy of ours would change what the user's own does
	}
	if either(set, noProxyPair) {
		p.warn("container %s sets NO_PROXY itself, which was left as it is: it must name %s, or the pod reaches its own API server through the proxy", c.Name, route.APIServer)
		return vars
	}
	value := noProxy([]string{literal(theirs, "KUBERNETES_SERVICE_HOST"), route.APIServer}, extra)
	return append(vars, corev1.EnvVar{Name: noProxyPair[0], Value: value}, corev1.EnvVar{Name: noProxyPair[1], Value: value})
}

// defined returns which of the variables that matter a container has already.
func defined(c *corev1.Container, theirs []corev1.EnvVar, envFrom EnvFrom) (map[string]bool, error) {
	names := []string{passwordVariable, noProxyPair[0], noProxyPair[1], allPair[0], allPair[1]}
	for _, pair := range pairs {
		names = append(names, pair[0], pair[1])
	}
	set := make(map[string]bool)
	for _, v := range theirs {
		if slices.Contains(names, v.Name) {
			set[v.Name] = true
		}
	}
	if len(c.EnvFrom) == 0 || envFrom == nil {
		return set, nil
	}
	more, err := envFrom(c, names)
	if err != nil {
		return nil, err
	}
	for _, name := range more {
		set[name] = true
	}
	return set, nil
}

func either(set map[string]bool, pair [2]string) bool { return set[pair[0]] || set[pair[1]] }

// literal is the value of the last variable of a name, if it is plain text.
func literal(vars []corev1.EnvVar, name string) (value string) {
	for _, v := range vars {
		if v.Name == name {
			value = v.Value
		}
	}
	return value
}

// annotate plans the annotations that say what was done.
func (p *Plan) annotate(pod *corev1.Pod, route *Route) {
	want := map[string]string{}
	if route != nil {
		want[selection.AnnotationInjected] = route.Proxy.Route()
		want[selection.AnnotationAgent] = route.Agent
	}
	made := pod.Annotations != nil
	for _, name := range []string{selection.AnnotationInjected, selection.AnnotationAgent} {
		have, there := pod.Annotations[name]
		value, wanted := want[name]
		switch {
		case there == wanted && have == value:
		case !wanted:
			p.do("remove", "/metadata/annotations/"+escape(name), nil)
		case !made:
			p.do("add", "/metadata/annotations", map[string]string{name: value})
			made = true
		default:
			p.do("add", "/metadata/annotations/"+escape(name), value)
		}
	}
}

// escape makes one token of a JSON pointer.
func escape(token string) string {
	return strings.ReplaceAll(strings.ReplaceAll(token, "~", "~0"), "/", "~1")
}
