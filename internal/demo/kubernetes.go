package demo

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// object is a JSON object as the Kubernetes API has it.
type object = map[string]any

// apiServer serves as much of the Kubernetes API as `kubectl get namespaces`
// asks for, read-only. It is shaped like a cluster and is none: it says so
// wherever a person would see it.
func apiServer(started time.Time) http.Handler {
	names := []string{"default", "kube-system", "this-is-postern-dev"}
	mux := http.NewServeMux()
	answer := func(pattern string, v object) {
		mux.HandleFunc("GET "+pattern, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, v) })
	}
	answer("/version", object{
		"major": "1", "minor": "36", "gitVersion": "v1.36.0+postern-demo", "gitCommit": "", "gitTreeState": "",
		"buildDate": started.UTC().Format(time.RFC3339), "goVersion": "", "compiler": "", "platform": "",
	})
	answer("/api", object{"kind": "APIVersions", "versions": []string{"v1"}, "serverAddressByClientCIDRs": []object{}})
	answer("/apis", object{"kind": "APIGroupList", "apiVersion": "v1", "groups": []object{}})
	answer("/api/v1", object{
		"kind": "APIResourceList", "groupVersion": "v1",
		"resources": []object{{"name": "namespaces", "singularName": "namespace", "namespaced": false, "kind": "Namespace",
			"verbs": []string{"get", "list"}, "shortNames": []string{"ns"}}},
	})
	mux.HandleFunc("GET /api/v1/namespaces", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") == "true" || r.URL.Query().Get("watch") == "1" {
			refuse(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "the demo of Postern does not watch")
			return
		}
		writeJSON(w, http.StatusOK, namespaces(r, names, started))
	})
	mux.HandleFunc("GET /api/v1/namespaces/{name}", func(w http.ResponseWriter, r *http.Request) {
		for _, name := range names {
			if name == r.PathValue("name") {
				if wantsTable(r) {
					writeJSON(w, http.StatusOK, table([]string{name}, started))
				} else {
					writeJSON(w, http.StatusOK, namespace(name, started))
				}
				return
			}
		}
		refuse(w, http.StatusNotFound, "NotFound", fmt.Sprintf("namespaces %q not found", r.PathValue("name")))
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			refuse(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "the demo of Postern is read-only")
			return
		}
		refuse(w, http.StatusNotFound, "NotFound", "the demo of Postern has namespaces and nothing else")
	})
	return mux
}

func namespaces(r *http.Request, names []string, started time.Time) object {
	if wantsTable(r) {
		return table(names, started)
	}
	items := make([]object, len(names))
	for i, name := range names {
		items[i] = namespace(name, started)
	}
	return object{"kind": "NamespaceList", "apiVersion": "v1", "metadata": object{"resourceVersion": "1"}, "items": items}
}

func namespace(name string, started time.Time) object {
	return object{
		"kind": "Namespace", "apiVersion": "v1", "metadata": metadata(name, started),
		"spec": object{"finalizers": []string{"kubernetes"}}, "status": object{"phase": "Active"},
	}
}

func metadata(name string, started time.Time) object {
	return object{"name": name, "uid": "demo-" + name, "resourceVersion": "1", "creationTimestamp": started.UTC().Format(time.RFC3339)}
}

// wantsTable reports whether the client would rather have a table (Kubernetes
// API concepts, "Receiving resources as Tables").
func wantsTable(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "as=Table;v=v1;g=meta.k8s.io")
}

func table(names []string, started time.Time) object {
	rows := make([]object, len(names))
	for i, name := range names {
		rows[i] = object{
			"cells": []any{name, "Active", fmt.Sprintf("%ds", int(time.Since(started).Seconds()))},
			"object": object{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
				"metadata": metadata(name, started)},
		}
	}
	column := func(name, format string) object {
		return object{"name": name, "type": "string", "format": format, "description": "", "priority": 0}
	}
	return object{
		"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": object{"resourceVersion": "1"},
		"columnDefinitions": []object{column("Name", "name"), column("Status", ""), column("Age", "")}, "rows": rows,
	}
}

func refuse(w http.ResponseWriter, status int, reason, message string) {
	writeJSON(w, status, object{"kind": "Status", "apiVersion": "v1", "metadata": object{},
		"status": "Failure", "message": message, "reason": reason, "code": status})
}

func writeJSON(w http.ResponseWriter, status int, v object) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone: there is nobody to tell
}
