package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// TestPackages installs the Debian packages on a machine with systemd, follows the guide there, and
// looks at what an administrator would: users, rights, restarts, failures, an upgrade, and what
// is left at the end.
func TestPackages(t *testing.T) {
	t.Parallel()
	deadline(t)
	m := harness.StartMachine(t)
	buildPackages(t, m.Share, "v1.2.3")
	start, upgrade, end := systemdGuide(t)
	m.Run(t, "mkdir -p /srv/web\necho 'hello from the private network' >/srv/web/index.html\n"+
		"setsid python3 -m http.server --directory /srv/web --bind 127.0.0.1 8000 </dev/null >/dev/null 2>&1 &")
	t.Logf("%s", m.Run(t, start))

	for role, capabilities := range map[string]string{"hub": "0000000000000400", "agent": "0000000000000000", "proxy": "0000000000000000"} {
		pid := mainPID(t, m, role)
		status := m.Run(t, "cat /proc/"+pid+"/status")
		for _, want := range []string{"CapEff:\t" + capabilities, "CapBnd:\t" + capabilities, "NoNewPrivs:\t1", "Seccomp:\t2"} {
			if !strings.Contains(status, want) {
				t.Errorf("postern-%s has not %q:\n%s", role, want, status)
			}
		}
		if user := strings.TrimSpace(m.Run(t, "stat -c %U /proc/"+pid)); user != "postern-"+role {
			t.Errorf("postern-%s runs as %s", role, user)
		}
	}
	if out, err := m.Try("runuser -u nobody -- cat /etc/postern-agent/office.join"); err == nil {
		t.Errorf("anybody can read a join string:\n%s", out)
	}

	// A service that dies comes back; one with settings that cannot be used does not, and says why.
	before := mainPID(t, m, "agent")
	m.Run(t, "kill -KILL "+before)
	reach := func() error {
		_, err := m.Try("curl -sSf -x http://127.0.0.1:3128 http://127.0.0.1:8000/")
		return err
	}
	harness.Eventually(t, 40*time.Second, "the agent is back", reach)
	m.Run(t, "cp /etc/postern-agent/agent.yaml /root/good.yaml; echo 'alow: []' >>/etc/postern-agent/agent.yaml; systemctl restart postern-agent")
	harness.Eventually(t, 10*time.Second, "the agent is given up", func() error {
		out, err := m.Try("systemctl is-failed postern-agent && systemctl show -p ExecMainStatus postern-agent | grep =2")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if log := m.Run(t, "journalctl --no-pager -u postern-agent -n 10"); !strings.Contains(log, "alow") {
		t.Errorf("the journal does not say what is wrong:\n%s", log)
	}
	m.Run(t, "cp /root/good.yaml /etc/postern-agent/agent.yaml; systemctl restart postern-agent")
	harness.Eventually(t, 40*time.Second, "streams open with the good settings", reach)

	// An upgrade restarts what runs.
	pids := map[string]string{"hub": mainPID(t, m, "hub"), "agent": mainPID(t, m, "agent"), "proxy": mainPID(t, m, "proxy")}
	old, err := filepath.Glob(filepath.Join(m.Share, "*.deb"))
	if err != nil || len(old) != 2 {
		t.Fatalf("the packages are %v, %v", old, err)
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	buildPackages(t, m.Share, "v1.2.4")
	t.Logf("%s", m.Run(t, upgrade))
	for role, pid := range pids {
		if mainPID(t, m, role) == pid {
			t.Errorf("postern-%s was not restarted by the upgrade", role)
		}
	}
	harness.Eventually(t, 40*time.Second, "streams open after the upgrade", reach)

	t.Logf("%s", m.Run(t, end))
	left := m.Run(t, "ls -d /etc/postern-* /var/lib/postern-{hub,agent,proxy} /usr/bin/postern* /usr/lib/systemd/system/postern-* 2>/dev/null || true; pgrep -l postern || true")
	if strings.TrimSpace(left) != "/var/lib/postern-hub" {
		t.Errorf("what is left of purged packages:\n%s", left)
	}
}

// TestPackagesAreReproducible builds packages twice.
func TestPackagesAreReproducible(t *testing.T) {
	t.Parallel()
	one, two := t.TempDir(), t.TempDir()
	buildPackages(t, one, "v0.0.1")
	buildPackages(t, two, "v0.0.1")
	files := filesBelow(t, one)
	if len(files) != 2 {
		t.Fatalf("the packages are %v", files)
	}
	for _, name := range files {
		a, errA := os.ReadFile(filepath.Join(one, name))
		b, errB := os.ReadFile(filepath.Join(two, name))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs: %d and %d bytes, %v, %v", name, len(a), len(b), errA, errB)
		}
	}
}

// TestServicesAreConfined holds the units to the exposure that systemd computes for them, from 0
// (none) to 10.
func TestServicesAreConfined(t *testing.T) {
	harness.Need(t, "systemd", "systemd-analyze")
	units, err := filepath.Glob(filepath.Join(harness.Root(), "packaging", "systemd", "*.service"))
	if err != nil || len(units) != 3 {
		t.Fatalf("the units are %v, %v", units, err)
	}
	for _, unit := range units {
		// It exits with 1 above the threshold, in tenths.
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=15", unit).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", filepath.Base(unit), err, out)
		}
	}
}

// buildPackages builds the packages of the programs under test.
func buildPackages(t *testing.T, dir, version string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(harness.Root(), "tools", "package.sh"), version, runtime.GOARCH, programs.Dir, dir)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// systemdGuide returns the commands of the guide: those up to the upgrade, the upgrade, and those after it.
func systemdGuide(t *testing.T) (start, upgrade, end string) {
	t.Helper()
	for _, b := range blocks(read(t, "docs/guide/systemd.md")) {
		switch {
		case !b.is("systemd"):
			t.Errorf("docs/guide/systemd.md:%d: commands that no test runs", b.line)
		case b.is("upgrade"):
			upgrade += b.text
		case upgrade == "":
			start += b.text
		default:
			end += b.text
		}
	}
	if start == "" || upgrade == "" || end == "" {
		t.Fatal("the guide lacks commands for the start, the upgrade or the end")
	}
	return start, upgrade, end
}

// mainPID returns the process of a service, as the machine numbers it.
func mainPID(t *testing.T, m *harness.Machine, role string) string {
	t.Helper()
	pid := strings.TrimSpace(m.Run(t, "systemctl show --value -p MainPID postern-"+role))
	if pid == "" || pid == "0" {
		t.Fatalf("postern-%s does not run:\n%s", role, m.Run(t, "systemctl status --no-pager postern-"+role+" || true"))
	}
	return pid
}
