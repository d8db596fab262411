//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// The addresses are from the range for benchmarks (RFC 2544), which no real network uses.
const (
	// HostIP is the test host's end of the link: the one address that is reachable from inside,
	// and where a hub should listen. It is the same for both clusters of a pair.
	HostIP = "198.18.77.1"
	// NodeIP is the node's end of the link. Nothing outside can connect to it. The second
	// cluster of a pair has another one: see Cluster.NodeIP.
	NodeIP = "198.18.77.2"
	// APIPort is where the API server listens, inside.
	APIPort = 6443

	// NodeLink is the node's end of the link as a network device.
	NodeLink = "eth0"

	nodeName = "node"

	podRange     = "10.88.0.0/24"
	serviceRange = "10.96.0.0/24"
	serviceIP    = "10.96.0.1"
	// DNSIP is the cluster's DNS service.
	DNSIP = "10.96.0.10"
)

// site is what tells two clusters on one machine apart. From inside they look the same, down to
// the addresses of nodes' names, pods and services: so it is with many private networks.
type site struct {
	name     string // for the log
	dir      string // below base
	hostLink string
	gateway  string // the host's end of the link
	nodeIP   string
	// cgroup is the control group, in every hierarchy, below which the node puts its pods.
	cgroup string
}

func firstSite() site {
	return site{name: "A", dir: "run", hostLink: "postern-kube0", gateway: HostIP, nodeIP: NodeIP, cgroup: "postern-kube"}
}

func secondSite() site {
	return site{name: "B", dir: "run-b", hostLink: "postern-kube1", gateway: "198.18.78.1", nodeIP: "198.18.78.2", cgroup: "postern-kube-b"}
}

// sandboxFiles are what the programs inside see instead of the machine's own.
func (s site) sandboxFiles() map[string]string {
	files := map[string]string{
		"/etc/resolv.conf": "nameserver " + DNSIP + "\noptions timeout:2 attempts:2\n",
		"/etc/hosts":       "127.0.0.1 localhost\n" + s.nodeIP + " " + nodeName + "\n",
	}
	// The kubelet insists on these settings of the whole machine, and changes them if it must:
	// here it finds them as it wants them, and the machine stays as it is.
	tunables := map[string]string{
		"/proc/sys/vm/overcommit_memory":      "1\n",
		"/proc/sys/vm/panic_on_oom":           "0\n",
		"/proc/sys/kernel/panic":              "10\n",
		"/proc/sys/kernel/panic_on_oops":      "1\n",
		"/proc/sys/kernel/keys/root_maxkeys":  "1000000\n",
		"/proc/sys/kernel/keys/root_maxbytes": "25000000\n",
	}
	for name, value := range tunables {
		if _, err := os.Stat(name); err == nil {
			files[name] = value
		}
	}
	return files
}

// network links the sandbox to the host and lets connections through outwards only, to HostIP
// only. The rules are where they come before any that kube-proxy may add.
func (c *Cluster) network(ctx context.Context) error {
	outside := [][]string{
		{"link", "add", c.site.hostLink, "type", "veth", "peer", "name", NodeLink, "netns", strconv.Itoa(c.box.Pid())},
		{"addr", "add", c.site.gateway + "/30", "dev", c.site.hostLink},
		{"link", "set", c.site.hostLink, "up"},
	}
	for _, args := range outside {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	if err := c.box.Do(setSysctls); err != nil {
		return err
	}
	inside := [][]string{
		{"ip", "addr", "add", c.site.nodeIP + "/30", "dev", NodeLink},
		{"ip", "link", "set", NodeLink, "up"},
		{"ip", "route", "add", "default", "via", c.site.gateway},
		{"iptables", "-t", "mangle", "-A", "PREROUTING", "-i", NodeLink, "-m", "conntrack", "!", "--ctstate", "ESTABLISHED,RELATED", "-j", "DROP"},
		{"iptables", "-t", "mangle", "-A", "POSTROUTING", "-o", NodeLink, "!", "-d", HostIP, "-j", "DROP"},
	}
	for _, args := range inside {
		if _, err := c.Exec(ctx, args[0], args[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// Cut makes the link to the host silent, as a cable that is pulled somewhere on the way: packets
// vanish in both directions, and neither end is told. The returned function mends it.
func (c *Cluster) Cut(ctx context.Context) (mend func(context.Context) error, err error) {
	rules := [][]string{{"PREROUTING", "-i", NodeLink}, {"POSTROUTING", "-o", NodeLink}}
	change := func(ctx context.Context, how string) error {
		for _, rule := range rules {
			args := append([]string{"-t", "mangle", how}, rule...)
			if _, err := c.Exec(ctx, "iptables", append(args, "-j", "DROP")...); err != nil {
				return err
			}
		}
		return nil
	}
	return func(ctx context.Context) error { return change(ctx, "-D") }, change(ctx, "-I")
}

// setSysctls runs inside. IPv6 is off, as its link-local addresses would be a way around the
// rules; forwarding is what a node of Kubernetes does.
func setSysctls() error {
	settings := map[string]string{
		"/proc/sys/net/ipv6/conf/all/disable_ipv6":     "1",
		"/proc/sys/net/ipv6/conf/default/disable_ipv6": "1",
		"/proc/sys/net/ipv4/ip_forward":                "1",
		// Answers between two pods must pass the rules that translated the question.
		"/proc/sys/net/bridge/bridge-nf-call-iptables": "1",
	}
	for name, value := range settings {
		err := os.WriteFile(name, []byte(value), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
