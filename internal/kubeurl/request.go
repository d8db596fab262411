package kubeurl

import (
	"net/http"
	"net/url"
	"strings"
)

// Request is what a request means to Kubernetes, as its RBAC rules and its audit log
// name it. A request that is about no resource has a Verb and a Path only.
type Request struct {
	Verb        string // get, list, watch, create, update, patch, delete, deletecollection, proxy; in small letters
	Group       string // API group; empty for the core's
	Version     string
	Namespace   string
	Resource    string
	Subresource string
	Name        string

	Path string // without the query

	follows bool // a log that is followed
}

// Resourceful reports whether the request is about a resource.
func (r Request) Resourceful() bool { return r.Resource != "" }

// Long reports whether the request is one that may last for hours: a watch, a log that
// is followed, or bytes both ways.
func (r Request) Long() bool { return r.Verb == "watch" || r.follows || r.Connect() }

// Connect reports whether the request asks for bytes both ways: exec, attach,
// port-forward or a proxy.
func (r Request) Connect() bool {
	switch r.Subresource {
	case "exec", "attach", "portforward", "proxy":
		return r.Resource == "pods" || r.Subresource == "proxy" && (r.Resource == "services" || r.Resource == "nodes")
	default:
		return r.Verb == "proxy"
	}
}

// What returns what the request is about, for people: "pods/exec" or a path.
func (r Request) What() string {
	if !r.Resourceful() {
		return r.Path
	}
	what := r.Resource
	if r.Group != "" {
		what += "." + r.Group
	}
	if r.Subresource != "" {
		what += "/" + r.Subresource
	}
	return what
}

// Object returns NAMESPACE/NAME of what the request is about, or what is known of it.
func (r Request) Object() string {
	if r.Namespace == "" || r.Resource == "namespaces" && r.Name == r.Namespace {
		return r.Name
	}
	return r.Namespace + "/" + r.Name
}

// Describe says what a request means, by its method and target: URL.Rest. It knows no
// schema, so it takes a client's word for a resource that does not exist.
func Describe(method, target string) Request {
	raw, query, _ := strings.Cut(target, "?")
	path, err := unescape(raw)
	if err != nil {
		path = raw
	}
	r := Request{Verb: strings.ToLower(method), Path: path}
	parts := split(path)
	switch {
	case len(parts) >= 3 && parts[0] == "api":
		r.Version, parts = parts[1], parts[2:]
	case len(parts) >= 4 && parts[0] == "apis":
		r.Group, r.Version, parts = parts[1], parts[2], parts[3:]
	default:
		return r
	}
	r.Verb = verbOf(method)
	if (parts[0] == "watch" || parts[0] == "proxy") && len(parts) > 1 { // the old way of both
		r.Verb, parts = parts[0], parts[1:]
	}
	r.place(parts)
	r.refine(query)
	return r
}

func split(path string) []string {
	path = strings.Trim(path, "/")
	if path == "" {
		return nil
	}
	return strings.Split(path, "/")
}

func verbOf(method string) string {
	switch method {
	case http.MethodPost:
		return "create"
	case http.MethodGet, http.MethodHead:
		return "get"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	default:
		return strings.ToLower(method)
	}
}

// place reads namespace, resource, name and subresource.
func (r *Request) place(parts []string) {
	if parts[0] == "namespaces" && len(parts) > 1 {
		r.Namespace = parts[1]
		// What is behind the name of a namespace is a resource in it, unless it is a
		// part of the namespace itself.
		if len(parts) > 2 && parts[2] != "status" && parts[2] != "finalize" {
			parts = parts[2:]
		}
	}
	fields := [...]*string{&r.Resource, &r.Name, &r.Subresource}
	for i := range min(len(parts), len(fields)) {
		*fields[i] = parts[i]
	}
}

// refine tells apart what a method alone does not.
func (r *Request) refine(query string) {
	if r.Name == "" {
		switch {
		case r.Verb == "get" && isTrue(query, "watch"):
			r.Verb = "watch"
		case r.Verb == "get":
			r.Verb = "list"
		case r.Verb == "delete":
			r.Verb = "deletecollection"
		}
	} else if r.Verb == "get" && r.Subresource == "" && isTrue(query, "watch") {
		r.Verb = "watch"
	}
	r.follows = r.Resource == "pods" && r.Subresource == "log" && isTrue(query, "follow")
}

// isTrue reports whether a parameter of a query is set, as Kubernetes reads it.
func isTrue(query, name string) bool {
	for pair := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if k, err := url.QueryUnescape(key); err != nil || k != name {
			continue
		}
		value, err := url.QueryUnescape(value)
		return err == nil && value != "0" && !strings.EqualFold(value, "false")
	}
	return false
}
