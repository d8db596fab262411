//go:build linux

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"postern.dev/postern/test/kube/pki"
	"postern.dev/postern/test/kube/proc"
)

// containerdConfig is for containerd 1.6, Debian's. restrict_oom_score_adj lets it run without
// CAP_SYS_RESOURCE, which virtual machines of builders often lack.
const containerdConfig = `version = 2
root = "%[1]s/containerd/root"
state = "/run/containerd-state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "%[2]s"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "%[3]s"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "%[1]s/cni"
`

const cniConfig = `{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {
      "type": "bridge", "bridge": "pods0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
      "ipam": {"type": "host-local", "dataDir": "%s/ipam", "ranges": [[{"subnet": "` + podRange + `"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    }
  ]
}
`

// socket is inside the sandbox's own /run.
const socket = "/run/containerd.sock"

func (c *Cluster) startRuntime(ctx context.Context) error {
	for _, dir := range []string{"cni", "ipam", "containerd"} {
		if err := os.MkdirAll(c.path(dir), 0o755); err != nil {
			return fmt.Errorf("make a folder of the node: %w", err)
		}
	}
	config := fmt.Sprintf(containerdConfig, c.dir, socket, ToolImage)
	if err := os.WriteFile(c.path("containerd", "config.toml"), []byte(config), 0o600); err != nil {
		return fmt.Errorf("write containerd's configuration: %w", err)
	}
	if err := os.WriteFile(c.path("cni", "10-pods.conflist"), fmt.Appendf(nil, cniConfig, c.dir), 0o600); err != nil {
		return fmt.Errorf("write the pod network's configuration: %w", err)
	}
	runtime, err := c.daemon("/usr/bin/containerd", "-c", c.path("containerd", "config.toml"))
	if err != nil {
		return err
	}
	err = proc.Wait(ctx, "containerd answers", func(ctx context.Context) error {
		_, err := c.Exec(ctx, "/usr/bin/ctr", "-a", socket, "version")
		return err
	}, runtime)
	if err != nil {
		return err
	}
	return c.importTool(ctx)
}

// startNode starts kubelet and kube-proxy and waits until the node is Ready.
func (c *Cluster) startNode(ctx context.Context) error {
	kubelet, err := c.startKubelet()
	if err != nil {
		return err
	}
	kubeProxy, err := c.startKubeProxy()
	if err != nil {
		return err
	}
	return proc.Wait(ctx, "the node is Ready", func(ctx context.Context) error {
		out, err := c.KubectlInside(ctx, "get", "node", nodeName, "-o",
			`jsonpath={.status.conditions[?(@.type=="Ready")].status} {.status.conditions[?(@.type=="Ready")].message}`)
		if err == nil && !strings.HasPrefix(out, "True") {
			err = fmt.Errorf("ready: %s", out)
		}
		return err
	}, kubelet, kubeProxy)
}

func (c *Cluster) startKubelet() (*proc.Process, error) {
	kubeconfig, err := c.userKubeconfig("kubelet", pki.Subject{Name: "system:node:" + nodeName, Groups: []string{"system:nodes"}, Hosts: []string{nodeName, c.site.nodeIP}})
	if err != nil {
		return nil, err
	}
	config, err := c.writeJSON("kubelet.json", map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"address":    c.site.nodeIP,
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": c.pki.CertFile()},
		},
		"authorization":               map[string]any{"mode": "Webhook"},
		"tlsCertFile":                 c.path("pki", "kubelet.crt"),
		"tlsPrivateKeyFile":           c.path("pki", "kubelet.key"),
		"containerRuntimeEndpoint":    "unix://" + socket,
		"cgroupDriver":                "cgroupfs",
		"cgroupRoot":                  "/" + c.site.cgroup,
		"failCgroupV1":                false,
		"failSwapOn":                  false,
		"clusterDNS":                  []string{DNSIP},
		"clusterDomain":               "cluster.local",
		"resolvConf":                  "/etc/resolv.conf",
		"podLogsDir":                  c.path("pods"),
		"nodeStatusUpdateFrequency":   "2s",
		"syncFrequency":               "5s", // Secrets that changed are soon in the pods
		"imageGCHighThresholdPercent": 100,
		"evictionHard": map[string]any{
			"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%",
		},
		"serializeImagePulls": false,
	})
	if err != nil {
		return nil, err
	}
	return c.daemon(c.bins.Path("kubelet"), "--config", config, "--kubeconfig", kubeconfig,
		"--hostname-override", nodeName, "--node-ip", c.site.nodeIP, "--root-dir", c.path("kubelet"))
}

func (c *Cluster) startKubeProxy() (*proc.Process, error) {
	kubeconfig, err := c.userKubeconfig("kube-proxy", pki.Subject{Name: "system:kube-proxy"})
	if err != nil {
		return nil, err
	}
	config, err := c.writeJSON("kube-proxy.json", map[string]any{
		"apiVersion":         "kubeproxy.config.k8s.io/v1alpha1",
		"kind":               "KubeProxyConfiguration",
		"mode":               "iptables",
		"clientConnection":   map[string]any{"kubeconfig": kubeconfig},
		"clusterCIDR":        podRange,
		"hostnameOverride":   nodeName,
		"healthzBindAddress": "127.0.0.1:10256",
		"metricsBindAddress": "127.0.0.1:10249",
		// A pod that calls a service which is another pod on the same bridge must see the answer
		// come from the service, whether or not the kernel filters bridges.
		"iptables": map[string]any{"masqueradeAll": true, "minSyncPeriod": "0s"},
		// The table's size belongs to the whole machine.
		"conntrack": map[string]any{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	})
	if err != nil {
		return nil, err
	}
	return c.daemon(c.bins.Path("kube-proxy"), "--config", config)
}

func (c *Cluster) writeJSON(name string, value any) (string, error) {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode %s: %w", name, err)
	}
	name = c.path(name)
	if err := os.WriteFile(name, text, 0o600); err != nil {
		return "", fmt.Errorf("write a configuration: %w", err)
	}
	return name, nil
}
