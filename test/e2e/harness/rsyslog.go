package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Rsyslog is a syslog server that takes messages over TLS. It can be killed and
// started again.
type Rsyslog struct {
	*Process
	Addr string

	spec Spec
	out  string
}

// SyslogMessage is a message as rsyslog has read it.
type SyslogMessage struct {
	Priority string // a number: facility and severity
	Version  string // of the protocol; rsyslog gives 0 for what is not RFC 5424
	Hostname string
	App      string
	ID       string
	Data     string // structured data
	Text     string
}

// StartRsyslog starts Debian's rsyslog with a certificate and its key.
func StartRsyslog(t testing.TB, certFile, keyFile, caFile string) *Rsyslog {
	t.Helper()
	server := Need(t, "rsyslog", "rsyslogd")
	NeedFile(t, "rsyslog-openssl", "/usr/lib/*/rsyslog/lmnsd_ossl.so")
	dir := t.TempDir()
	port := FreePort(t)
	r := &Rsyslog{Addr: fmt.Sprintf("localhost:%d", port), out: filepath.Join(dir, "messages")}
	config := fmt.Sprintf(`
global(
	workDirectory="%[1]s" maxMessageSize="64k"
	DefaultNetstreamDriver="ossl" DefaultNetstreamDriverCAFile="%[2]s"
	DefaultNetstreamDriverCertFile="%[3]s" DefaultNetstreamDriverKeyFile="%[4]s"
)
module(load="imtcp" StreamDriver.Name="ossl" StreamDriver.Mode="1" StreamDriver.AuthMode="anon")
template(name="read" type="string" string="%%pri%%\t%%protocol-version%%\t%%hostname%%\t%%app-name%%\t%%msgid%%\t%%structured-data%%\t%%msg%%\n")
input(type="imtcp" port="%[5]d" address="127.0.0.1" SupportOctetCountedFraming="on")
action(type="omfile" file="%[6]s" template="read" asyncWriting="off")
`, dir, caFile, certFile, keyFile, port, r.out)
	path := filepath.Join(dir, "rsyslog.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	r.spec = Spec{Name: "rsyslog", Path: server, Dir: dir, Args: []string{"-n", "-f", path, "-i", filepath.Join(dir, "pid")}, StopsBadly: true}
	r.Start(t)
	return r
}

// Start starts the server's process again, with the same messages.
func (r *Rsyslog) Start(t testing.TB) {
	t.Helper()
	_ = os.Remove(filepath.Join(r.spec.Dir, "pid")) // of one that was killed
	r.Process = Start(t, r.spec)
	WaitTCP(t, r.Addr, r.Process, 20*time.Second)
}

// Messages returns what the server has written, in the order in which it did.
func (r *Rsyslog) Messages(t testing.TB) []SyslogMessage {
	t.Helper()
	text, err := os.ReadFile(r.out)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var all []SyslogMessage
	for line := range strings.Lines(string(text)) {
		if !strings.HasSuffix(line, "\n") {
			break // it is being written
		}
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 7)
		if len(f) != 7 {
			t.Fatalf("rsyslog wrote %q", line)
		}
		all = append(all, SyslogMessage{f[0], f[1], f[2], f[3], f[4], f[5], strings.TrimPrefix(f[6], " ")})
	}
	return all
}
