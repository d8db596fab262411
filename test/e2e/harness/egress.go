package harness

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Network is a network namespace whose only neighbour is the machine that the
// test runs on: no route leads further.
type Network struct {
	Host string // the machine's address, as seen from inside

	name string
}

// NewNetwork makes a network. It needs root and iproute2.
func NewNetwork(t testing.TB) *Network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("a network namespace needs root")
	}
	Need(t, "iproute2", "ip")
	id := os.Getpid() & 0x3fff
	// One /30 for each test process, out of what RFC 2544 sets aside for benchmarks.
	base := net.IPv4(198, 18, byte(id>>6), byte(id<<2))
	addr := func(n byte) string { return net.IPv4(base[12], base[13], base[14], base[15]+n).String() }
	n := &Network{Host: addr(1), name: fmt.Sprintf("postern-%d", os.Getpid())}
	veth := fmt.Sprintf("po%d", os.Getpid())
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run("netns", "add", n.name)
	t.Cleanup(func() { run("netns", "del", n.name) }) // the link goes with it
	run("link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", n.name)
	run("addr", "add", n.Host+"/30", "dev", veth)
	run("link", "set", veth, "up")
	run("-n", n.name, "addr", "add", addr(2)+"/30", "dev", "eth0")
	run("-n", n.name, "link", "set", "eth0", "up")
	run("-n", n.name, "link", "set", "lo", "up")
	return n
}

// Start starts a process inside the network.
func (n *Network) Start(t testing.TB, spec Spec) *Process {
	t.Helper()
	spec.Args = append([]string{"netns", "exec", n.name, spec.Path}, spec.Args...)
	spec.Path = Need(t, "iproute2", "ip")
	return Start(t, spec)
}

// Try runs a program to its end inside the network.
func (n *Network) Try(t testing.TB, timeout time.Duration, env []string, program string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return Try(t, timeout, env, Need(t, "iproute2", "ip"), slices.Concat([]string{"netns", "exec", n.name, program}, args)...)
}

// Squid is a running HTTP proxy that allows CONNECT to some ports, for one user.
type Squid struct {
	*Process
	Addr string

	log string
}

// StartSquid starts a Squid at host that knows names (name to address), lets a
// user with a password connect, and only to the given ports.
func StartSquid(t testing.TB, host, user, password string, names map[string]string, ports ...string) *Squid {
	t.Helper()
	server := Need(t, "squid", "squid")
	openssl := Need(t, "openssl", "openssl")
	dir := t.TempDir()
	hash := strings.TrimSpace(Output(t, 20*time.Second, openssl, "passwd", "-apr1", password))
	var hosts strings.Builder
	for name, addr := range names {
		fmt.Fprintln(&hosts, addr, name)
	}
	s := &Squid{Addr: net.JoinHostPort(host, fmt.Sprint(FreePort(t))), log: filepath.Join(dir, "access.log")}
	config := fmt.Sprintf(`
http_port %[2]s
pid_filename none
visible_hostname squid.test
hosts_file %[1]s/hosts
access_log stdio:%[1]s/access.log
cache_log %[1]s/cache.log
cache_store_log none
cache deny all
cache_mem 8 MB
shutdown_lifetime 1 seconds
auth_param basic program /usr/lib/squid/basic_ncsa_auth %[1]s/passwd
auth_param basic children 2 startup=1
acl known proxy_auth REQUIRED
acl connect method CONNECT
acl allowed port %[3]s
http_access deny !connect
http_access deny !allowed
http_access allow known
http_access deny all
`, dir, s.Addr, strings.Join(ports, " "))
	for name, text := range map[string]string{"squid.conf": config, "hosts": hosts.String(), "passwd": user + ":" + hash + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	who := unprivileged(t, "proxy", dir)
	s.Process = Start(t, Spec{
		Name: "squid", Path: server, Dir: dir, User: who, StopsBadly: true, Args: []string{"-N", "-f", filepath.Join(dir, "squid.conf")},
	})
	WaitTCP(t, s.Addr, s.Process, 30*time.Second)
	return s
}

// Connections returns how many tunnels to a port have come to their end.
func (s *Squid) Connections(t testing.TB, status, port string) int {
	t.Helper()
	text, err := os.ReadFile(s.log)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "/"+status+" ") && strings.Contains(line, "CONNECT hub.test:"+port) {
			n++
		}
	}
	return n
}

// StartTLSTerminator starts an nginx that ends TLS with a certificate and passes
// everything on to a hub, WebSockets included. It cuts connections over which
// nothing came for idle, and returns its address.
func StartTLSTerminator(t testing.TB, hub, certFile, keyFile string, idle time.Duration) string {
	t.Helper()
	server := Need(t, "nginx-light", "nginx")
	dir := t.TempDir()
	addr := FreeAddr(t)
	config := fmt.Sprintf(`
user root;
daemon off;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	map $http_upgrade $connection_upgrade {
		default upgrade;
		''      close;
	}
	server {
		listen %[2]s ssl;
		ssl_certificate %[4]s;
		ssl_certificate_key %[5]s;
		location / {
			proxy_pass https://%[3]s;
			proxy_ssl_protocols TLSv1.3;
			proxy_http_version 1.1;
			proxy_set_header Upgrade $http_upgrade;
			proxy_set_header Connection $connection_upgrade;
			proxy_read_timeout %[6]ds;
			proxy_send_timeout %[6]ds;
		}
	}
}
`, dir, addr, hub, certFile, keyFile, int(idle.Seconds()))
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p := Start(t, Spec{Name: "nginx", Path: server, Dir: dir, Args: []string{"-c", path, "-p", dir, "-e", "stderr"}})
	WaitTCP(t, addr, p, 20*time.Second)
	return addr
}
