//go:build linux

package guides_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os/exec"
	"strings"
	"testing"

	"postern.dev/postern/test/guides/tools"
	"postern.dev/postern/test/kube/proc"
)

// TestPrometheus has one Prometheus outside and one inside. The outer one federates the inner one
// and writes to it, as the guide says.
func TestPrometheus(t *testing.T) {
	program, err := tools.Prometheus(t.Context(), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, "tcp:prometheus.monitoring.svc:9090")
	startInner(t, w, program)
	w.shell(t, "postern access grant --to robot:deployer --agent office --target tcp:prometheus.monitoring.svc:9090")

	files := []string{"/etc/postern/token", w.file("token"), "/etc/postern/hub-ca.crt", w.file("hub-ca.crt"), "hub.example.org:4222", w.hubAddr}
	jobs := example(t, "many-clusters.md", "honor_labels", files...)
	write := example(t, "many-clusters.md", "remote_write", "127.0.0.1:3128", w.proxyAddr)
	addr := freeAddr(t)
	self := "  - job_name: outside\n    static_configs:\n      - targets: ['" + addr + "']\n"
	config := w.write(t, "prometheus.yml", "global: {scrape_interval: 2s, external_labels: {cluster: outside}}\n"+jobs+self+write)
	outer := w.start(t, "prometheus", exec.Command(program, "--config.file", config, "--storage.tsdb.path", w.file("data"), "--web.listen-address", addr))

	wantUp(t, w, outer, addr, "office")
	wantSeries(t, w, outer, "http://"+addr, "", `prometheus_build_info{job="kubelet"}`)
	// What was written comes back by the gateway, where the guide sends Grafana.
	inner := "https://" + w.hubAddr + "/office/api/v1/namespaces/monitoring/services/http:prometheus:9090/proxy-service"
	wantSeries(t, w, outer, inner, w.token(t), `up{job="outside",cluster="outside"}`)
}

// startInner starts the Prometheus of the private cluster, where the agent alone finds it by the
// name of its Service, and has it scrape itself.
func startInner(t *testing.T, w *world, program string) {
	t.Helper()
	addr := inside + ":9090"
	kubectl(t, w.api, "", "create", "namespace", "monitoring")
	kubectl(t, w.api, `apiVersion: v1
kind: Service
metadata: {name: prometheus, namespace: monitoring, annotations: {prometheus.io/scrape: "true"}}
spec: {ports: [{name: http, port: 9090}]}
`, "apply", "-f", "-")
	config := w.write(t, "inner.yml", `global: {scrape_interval: 2s}
scrape_configs:
- job_name: kubelet
  static_configs: [{targets: ["`+addr+`"]}]
`)
	w.start(t, "prometheus-inside", exec.Command(program, "--config.file", config, "--storage.tsdb.path", w.file("inner"), "--web.listen-address", addr, "--web.enable-remote-write-receiver"))
}

// wantUp waits until Prometheus says of every target of a job, of which there has to be one, that it is up.
func wantUp(t *testing.T, w *world, p *proc.Process, addr, job string) {
	t.Helper()
	w.await(t, "every target of the job "+job+" is up", func(ctx context.Context) error {
		var answer struct {
			Data struct {
				ActiveTargets []struct {
					Labels                       map[string]string
					Health, ScrapeURL, LastError string
				}
			}
		}
		if err := get(ctx, w, "http://"+addr+"/api/v1/targets", "", &answer); err != nil {
			return err
		}
		found := 0
		for _, target := range answer.Data.ActiveTargets {
			if target.Labels["job"] != job {
				continue
			}
			found++
			if target.Health != "up" {
				return fmt.Errorf("%s is %s: %s", target.ScrapeURL, target.Health, target.LastError)
			}
		}
		if found == 0 {
			return fmt.Errorf("it has no target: %+v", answer)
		}
		return nil
	}, p)
}

// wantSeries waits until a Prometheus has series that match.
func wantSeries(t *testing.T, w *world, p *proc.Process, base, token, match string) {
	t.Helper()
	w.await(t, "Prometheus has "+match, func(ctx context.Context) error {
		var answer struct {
			Data struct{ Result []json.RawMessage }
		}
		err := get(ctx, w, base+"/api/v1/query?query="+url.QueryEscape(match), token, &answer)
		if err == nil && len(answer.Data.Result) == 0 {
			err = fmt.Errorf("it has none at %s", base)
		}
		return err
	}, p)
}

// get reads JSON from a URL, as the bearer of a token.
func get(ctx context.Context, w *world, from, token string, answer any) error {
	cmd := exec.CommandContext(ctx, "curl", "-sS", "--fail-with-body", "--max-time", "10", "--cacert", w.file("hub-ca.crt"), from)
	if token != "" {
		cmd.Args = append(cmd.Args, "-H", "@-")
		cmd.Stdin = strings.NewReader("Authorization: Bearer " + token)
	}
	cmd.Env = environment()
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("GET %s: %w: %s", from, err, out)
	}
	return json.Unmarshal(out, answer)
}
