package harness_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// TestServers tries the servers without a tunnel, so that a failure of an
// end-to-end test is known to be the tunnel's.
func TestServers(t *testing.T) {
	db := harness.StartPostgres(t)
	psql := harness.Need(t, "postgresql-client-15", "psql")
	url := "postgresql://postgres@" + db.Addr + "/postgres"
	if out := harness.Output(t, 20*time.Second, psql, "-At", "-c", "select 6*7", url); strings.TrimSpace(out) != "42" {
		t.Errorf("psql: %q", out)
	}
	curl := harness.Need(t, "curl", "curl")
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "small"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := harness.Output(t, 20*time.Second, curl, "-sSf", "http://"+harness.StartNginx(t, root)+"/small"); out != "hello" {
		t.Errorf("nginx: %q", out)
	}
	if out := harness.Output(t, 20*time.Second, curl, "-sS", "dict://"+harness.StartRedis(t)+"/set:a:b"); !strings.Contains(out, "+OK") {
		t.Errorf("redis: %q", out)
	}
}

func TestBlackHole(t *testing.T) {
	conn, err := net.DialTimeout("tcp", harness.BlackHole(t), 300*time.Millisecond)
	if err == nil {
		conn.Close()
		t.Error("it answered")
	}
}

func TestTransfers(t *testing.T) {
	const size = 3<<20 + 17
	there := make(chan harness.Exchange, 1)
	addr := harness.Serve(t, func(conn *net.TCPConn) { there <- harness.Both(conn, size, 1) })
	here := harness.Both(harness.Dial(t, addr), size, 2)
	if far := <-there; here.Err != nil || far.Err != nil || here.Sent != far.Received || far.Sent != here.Received || here.Bytes != size {
		t.Errorf("here %+v, there %+v", here, far)
	}
	if err := harness.PingEcho(harness.Serve(t, harness.Echo), time.Second); err != nil {
		t.Error(err)
	}
}

func TestProcess(t *testing.T) {
	p := harness.Start(t, harness.Spec{Name: "sleep", Path: "/bin/sleep", Args: []string{"60"}})
	if n, err := p.Listeners(); n != 0 || err != nil {
		t.Errorf("sleep listens on %d sockets, %v", n, err)
	}
	if pipes, others, err := p.FDs(); pipes+others < 3 || err != nil {
		t.Errorf("sleep has %d pipes and %d other descriptors, %v", pipes, others, err)
	}
	p.Kill()
	if code := p.ExitCode(); code != -1 {
		t.Errorf("exit code %d after a kill", code)
	}
}
