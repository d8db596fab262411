package harness

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Postgres is a running PostgreSQL server. Everybody on loopback is trusted,
// as user "postgres", database "postgres".
type Postgres struct {
	*Process
	Addr string
}

// StartPostgres starts a PostgreSQL 15 with a new database.
func StartPostgres(t testing.TB) *Postgres {
	t.Helper()
	initdb := Need(t, "postgresql-15", "initdb")
	server := Need(t, "postgresql-15", "postgres")
	dir := t.TempDir()
	who := unprivileged(t, "postgres", dir)
	data := filepath.Join(dir, "data")
	create := exec.CommandContext(t.Context(), initdb, "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8")
	create.SysProcAttr = &syscall.SysProcAttr{Credential: who}
	create.Dir = dir
	create.Env = BaseEnv(dir)
	if out, err := create.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	port := FreePort(t)
	p := &Postgres{Addr: fmt.Sprintf("127.0.0.1:%d", port)}
	p.Process = Start(t, Spec{
		Name: "postgres", Path: server, Dir: dir, User: who,
		Args: []string{
			"-D", data, "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-k", dir,
			"-c", "fsync=off", "-c", "max_connections=100", "-c", "shared_buffers=64MB",
		},
	})
	p.WaitLog(t, `database system is ready to accept connections`, 30*time.Second)
	return p
}

// StartRedis starts a Redis server and returns its address.
func StartRedis(t testing.TB) string {
	t.Helper()
	server := Need(t, "redis-server", "redis-server")
	port := FreePort(t)
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	p := Start(t, Spec{
		Name: "redis", Path: server, Dir: t.TempDir(),
		Args: []string{"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"},
	})
	WaitTCP(t, addr, p, 20*time.Second)
	return addr
}

// StartNginx starts an nginx that serves the files of a directory and returns
// its address.
func StartNginx(t testing.TB, root string) string {
	t.Helper()
	server := Need(t, "nginx-light", "nginx")
	dir := t.TempDir()
	addr := FreeAddr(t)
	config := fmt.Sprintf(`
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
	sendfile on;
	server { listen %[2]s; root %[3]s; }
}
`, dir, addr, root)
	if os.Geteuid() == 0 {
		config = "user root;\n" + config // it reads the test's private files
	}
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p := Start(t, Spec{Name: "nginx", Path: server, Dir: dir, Args: []string{"-c", path, "-p", dir, "-e", "stderr"}})
	WaitTCP(t, addr, p, 20*time.Second)
	return addr
}

// unprivileged gives dir to the named user if the test runs as root, and
// returns whom to run as; nil for oneself.
func unprivileged(t testing.TB, name, dir string) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
	if uidErr != nil || gidErr != nil {
		t.Fatalf("user %s has the IDs %q and %q", name, u.Uid, u.Gid)
	}
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
	// The directories above are the test's own; the user has to pass through.
	for d := filepath.Dir(dir); strings.HasPrefix(d, os.TempDir()+"/"); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// Output runs a program to its end and returns what it printed to its standard
// output. A failure ends the test with what it printed to its standard error.
func Output(t testing.TB, timeout time.Duration, program string, args ...string) string {
	t.Helper()
	stdout, stderr, err := Try(t, timeout, nil, program, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", filepath.Base(program), strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout
}

// Try runs a program to its end, with additions to its environment, and returns
// what it printed and how it ended.
func Try(t testing.TB, timeout time.Duration, env []string, program string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs strings.Builder
	cmd := exec.Command(program, args...)
	cmd.Env = append(BaseEnv(t.TempDir()), env...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(timeout, func() { _ = cmd.Process.Kill() })
	err = cmd.Wait()
	if !timer.Stop() {
		err = fmt.Errorf("killed after %v: %w", timeout, err)
	}
	return out.String(), errs.String(), err
}

// BlackHole returns an address on loopback that never answers a connection's
// first packet: its queue of connections is full and nobody accepts any.
func BlackHole(t testing.TB) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	port := FreePort(t)
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	for range 8 {
		conn, err := net.DialTimeout("tcp", addr, 300*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { conn.Close() })
	}
	t.Fatal("the queue of connections does not fill")
	return ""
}
