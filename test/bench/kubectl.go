package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// The figures of kubectl: processes at once.
const (
	kubectlGets  = 50
	kubectlExecs = 100
)

// findKubectl finds the real program, unless it was named: the one that test/kube
// builds, once.
func (b *bench) findKubectl(ctx context.Context) error {
	if b.opts.kubectl != "" {
		return nil
	}
	cmd := exec.CommandContext(ctx, "go", "run", "./cmd/kubebins")
	cmd.Dir, cmd.Stderr = "../kube", os.Stderr
	dir, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("build kubectl with test/kube, run the bench from its own folder, or give -kubectl: %w", err)
	}
	b.opts.kubectl = filepath.Join(strings.TrimSpace(string(dir)), "kubectl")
	return nil
}

// writeKubeconfig writes a file by which kubectl knows the site.
func (s *site) writeKubeconfig(file string) error {
	cluster := map[string]any{"server": s.base, "certificate-authority": s.ca, "tls-server-name": s.conf.ServerName}
	named := func(kind string, v any) []any { return []any{map[string]any{"name": "bench", kind: v}} }
	text, err := json.Marshal(map[string]any{
		"kind": "Config", "apiVersion": "v1", "current-context": "bench",
		"clusters": named("cluster", cluster), "users": named("user", map[string]any{"token": cmp.Or(s.token, "any")}),
		"contexts": named("context", map[string]any{"cluster": "bench", "user": "bench", "namespace": "bench"}),
	})
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

// sampleKubectl runs the real kubectl, many processes at once.
func sampleKubectl(ctx context.Context, s sampler) error {
	if err := s.findKubectl(ctx); err != nil {
		return err
	}
	home, err := os.MkdirTemp(s.dir, "kubectl-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	config := filepath.Join(home, "config")
	if err := s.world.api.writeKubeconfig(config); err != nil {
		return err
	}
	run := func(n int, want string, args ...string) (time.Duration, error) {
		errs := make([]error, n)
		start := time.Now()
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { errs[i] = s.kubectl(ctx, home, config, want, args...) })
		}
		wg.Wait()
		return time.Since(start), errors.Join(errs...)
	}
	last := makePods(few).Items[few-1].Metadata.Name
	get, login := []string{"get", "pods"}, []string{"exec", "one", "--", "true"}
	if _, err := run(1, last, get...); err != nil { // what it remembers of a cluster, it knows from now on
		return err
	}
	took, err := run(kubectlGets, last, get...)
	if err != nil {
		return err
	}
	s.record(mRealGets, kubectlGets/took.Seconds())
	if took, err = run(kubectlExecs, shellLine, login...); err != nil {
		return err
	}
	s.record(mRealExecs, kubectlExecs/took.Seconds())
	return nil
}

// kubectl runs one, whose output has to have something in it.
func (b *bench) kubectl(ctx context.Context, home, config, want string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 4*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.opts.kubectl, args...)
	cmd.Env = []string{"HOME=" + home, "KUBECONFIG=" + config, "PATH=" + os.Getenv("PATH")}
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil || !strings.Contains(out.String(), want) {
		return fmt.Errorf("kubectl %s: %w: %.300s%.300s", strings.Join(args, " "), err, out.String(), complaints.String())
	}
	return nil
}

// serveDiscovery answers what kubectl asks a cluster first: which kinds there are.
func serveDiscovery(mux *http.ServeMux) {
	for path, v := range map[string]any{
		"GET /api":  map[string]any{"kind": "APIVersions", "versions": []string{"v1"}},
		"GET /apis": map[string]any{"kind": "APIGroupList", "apiVersion": "v1", "groups": []any{}},
		"GET /api/v1": map[string]any{"kind": "APIResourceList", "groupVersion": "v1", "resources": []any{map[string]any{
			"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "shortNames": []string{"po"}, "verbs": []string{"get", "list", "watch"},
		}, map[string]any{"name": "pods/exec", "namespaced": true, "kind": "PodExecOptions", "verbs": []string{"create", "get"}}}},
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { serveJSON(w, r, v) })
	}
}

// wantsTable reports whether a client is one for people.
func wantsTable(r *http.Request) bool { return strings.Contains(r.Header.Get("Accept"), "as=Table") }

// table is how a server lists pods for people.
func table(pods podList) map[string]any {
	var columns, rows []any
	for _, name := range []string{"Name", "Ready", "Status", "Restarts", "Age"} {
		columns = append(columns, map[string]any{"name": name, "type": "string", "format": "", "description": name, "priority": 0})
	}
	for _, p := range pods.Items {
		rows = append(rows, map[string]any{"cells": []any{p.Metadata.Name, "1/1", "Running", 0, "5m"}, "object": map[string]any{
			"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": p.Metadata,
		}})
	}
	return map[string]any{
		"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": pods.Metadata, "columnDefinitions": columns, "rows": rows,
	}
}

// shellLine is what the command of an exec says.
const shellLine = "a line of a shell\n"

// serveRemoteCommand is the server's end of an exec as kubectl speaks it: WebSocket
// messages whose first byte is a channel. The command has no input, and ends at once.
func serveRemoteCommand(w http.ResponseWriter, r *http.Request) {
	const output, end = 1, 3
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"v5.channel.k8s.io"}})
	if err != nil {
		return
	}
	defer func() { _ = ws.CloseNow() }()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	for _, text := range []string{string(rune(output)) + shellLine, string(rune(end)) + `{"metadata":{},"status":"Success"}`} {
		if ws.Write(ctx, websocket.MessageBinary, []byte(text)) != nil {
			return
		}
	}
	_ = ws.Close(websocket.StatusNormalClosure, "")
}
