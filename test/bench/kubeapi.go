package main

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// listed is how many pods the long list has, few the short one.
const (
	listed = 5000
	few    = 10
)

// pod has what makes up most of a pod in JSON, in sizes that are usual.
type pod struct {
	Kind       string         `json:"kind,omitempty"`
	APIVersion string         `json:"apiVersion,omitempty"`
	Metadata   podMeta        `json:"metadata"`
	Spec       map[string]any `json:"spec"`
	Status     map[string]any `json:"status"`
}

type podMeta struct {
	Name            string            `json:"name"`
	Namespace       string            `json:"namespace"`
	UID             string            `json:"uid"`
	ResourceVersion string            `json:"resourceVersion"`
	Labels          map[string]string `json:"labels"`
	Annotations     map[string]string `json:"annotations"`
}

type podList struct {
	Kind       string            `json:"kind"`
	APIVersion string            `json:"apiVersion"`
	Metadata   map[string]string `json:"metadata"`
	Items      []pod             `json:"items"`
}

// makePods returns n pods of about three kilobytes each.
func makePods(n int) podList {
	list := podList{Kind: "PodList", APIVersion: "v1", Metadata: map[string]string{"resourceVersion": "1"}}
	for i := range n {
		var env, mounts, conditions []map[string]any
		for j := range 12 {
			env = append(env, map[string]any{"name": fmt.Sprintf("SETTING_%d", j), "value": fmt.Sprintf("value-%d-of-pod-%d", j, i)})
			mounts = append(mounts, map[string]any{"name": fmt.Sprintf("volume-%d", j), "mountPath": fmt.Sprintf("/var/run/data/%d", j), "readOnly": true})
		}
		for _, c := range []string{"Initialized", "Ready", "ContainersReady", "PodScheduled"} {
			conditions = append(conditions, map[string]any{"type": c, "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"})
		}
		name := fmt.Sprintf("deployment-%08x-%05d", i*2654435761, i)
		list.Items = append(list.Items, pod{
			Metadata: podMeta{
				Name: name, Namespace: fmt.Sprintf("namespace-%d", i%40), UID: fmt.Sprintf("%08x-0000-4000-8000-%012x", i, i), ResourceVersion: strconv.Itoa(i),
				Labels:      map[string]string{"app": name[:19], "pod-template-hash": name[11:19], "tier": "backend"},
				Annotations: map[string]string{"checksum/config": strings.Repeat(name[11:19], 8)},
			},
			Spec: map[string]any{
				"nodeName":   fmt.Sprintf("node-%d", i%100),
				"containers": []map[string]any{{"name": "main", "image": "registry.example.com/team/service:" + name[11:19], "env": env, "volumeMounts": mounts}},
			},
			Status: map[string]any{"phase": "Running", "podIP": fmt.Sprintf("10.0.%d.%d", i/250, i%250), "conditions": conditions},
		})
	}
	return list
}

// runAPI is an API server as far as the gateway's figures need one. Like a real
// one, it encodes and compresses every list anew.
func runAPI(f roleFlags) ([]string, error) {
	conf, err := serverTLS(f.cert)
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	pods := makePods(listed)
	short := pods
	short.Items = pods.Items[:few]
	one := pods.Items[0]
	one.Kind, one.APIVersion, one.Metadata.Name, one.Metadata.Namespace = "Pod", "v1", "one", "bench"
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/pods", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") != "" {
			serveWatch(w, r)
			return
		}
		serveJSON(w, r, pods)
	})
	mux.HandleFunc("GET /api/v1/namespaces/bench/pods", func(w http.ResponseWriter, r *http.Request) {
		if wantsTable(r) {
			serveJSON(w, r, table(short))
			return
		}
		serveJSON(w, r, short)
	})
	mux.HandleFunc("GET /api/v1/namespaces/bench/pods/one", func(w http.ResponseWriter, r *http.Request) { serveJSON(w, r, one) })
	mux.HandleFunc("GET /api/v1/namespaces/bench/pods/one/exec", serveRemoteCommand)
	serveDiscovery(mux)
	mux.HandleFunc("POST /api/v1/namespaces/bench/pods/one/exec", serveExec)
	conf.SessionTicketsDisabled = false // kube-apiserver resumes sessions
	server := &http.Server{Handler: mux, TLSConfig: conf, ReadHeaderTimeout: 10 * time.Second}
	server.TLSConfig.NextProtos = []string{"h2", "http/1.1"}
	server.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 1000}
	go func() { _ = server.ServeTLS(ln, "", "") }()
	return []string{ln.Addr().String()}, nil
}

func serveJSON(w http.ResponseWriter, r *http.Request, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	const worth = 128 << 10 // from where API servers compress
	if len(text) < worth || r.Header.Get("Accept-Encoding") != "gzip" {
		_, _ = w.Write(text)
		return
	}
	w.Header().Set("Content-Encoding", "gzip")
	z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed)
	_, _ = z.Write(text)
	_ = z.Close()
}

// watchEvent is an event of a watch; Sent tells the client how late it is.
type watchEvent struct {
	Type   string `json:"type"`
	Sent   int64  `json:"sent"` // nanoseconds of the one clock that all processes read
	Object pod    `json:"object"`
}

// serveWatch sends an event each "every" milliseconds, or none for 0, until the
// client leaves.
func serveWatch(w http.ResponseWriter, r *http.Request) {
	every, _ := strconv.Atoi(r.URL.Query().Get("every"))
	w.Header().Set("Content-Type", "application/json")
	flusher := http.NewResponseController(w)
	if err := flusher.Flush(); err != nil {
		return
	}
	if every == 0 {
		<-r.Context().Done()
		return
	}
	event := watchEvent{Type: "MODIFIED", Object: makePods(1).Items[0]}
	tick := time.NewTicker(time.Duration(every) * time.Millisecond)
	defer tick.Stop()
	enc := json.NewEncoder(w)
	for {
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
		event.Sent = time.Now().UnixNano()
		if errors.Join(enc.Encode(event), flusher.Flush()) != nil {
			return
		}
	}
}

// upgradeTo is the protocol of the figure of execs: bytes come back as they are.
const upgradeTo = "bench-echo"

func serveExec(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != upgradeTo {
		http.Error(w, "not an upgrade", http.StatusBadRequest)
		return
	}
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Upgrade", upgradeTo)
	w.WriteHeader(http.StatusSwitchingProtocols)
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Time{})
	_, _ = io.Copy(c, struct{ io.Reader }{rw})
}
