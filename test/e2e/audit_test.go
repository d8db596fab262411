package e2e_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// entry is what these tests look at of an audit record.
type entry struct {
	ID       string `json:"id"`
	Sequence uint64 `json:"seq"`
	Action   string `json:"action"`
	Reporter string `json:"reporter"`
	Stream   string `json:"stream"`
	Object   string `json:"object"`
	What     string `json:"what"`
	Source   string `json:"source"`
	Count    int    `json:"count"`
	line     string
}

func parseEntry(line string) (e entry, err error) {
	err = json.Unmarshal([]byte(line), &e)
	e.line = line
	return e, err
}

// auditLog returns the audit log of an organization, or the hub's own if it is empty.
func auditLog(t *testing.T, hub *harness.Hub, organization string) (all []entry) {
	t.Helper()
	args := []string{"audit", "--since", "0", "-o", "json"}
	if organization == "" {
		args = append(args, "--of-hub")
	} else {
		args = append(args, "-a", organization)
	}
	for line := range strings.Lines(hub.Admin(t, args...)) {
		e, err := parseEntry(strings.TrimSuffix(line, "\n"))
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, e)
	}
	return all
}

// busy opens and closes streams over forwards until it is stopped, and returns then how
// many worked and how long the slowest of those took.
func busy(forwards []string) (stop func() (worked int, slowest time.Duration)) {
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		worked  int
		slowest time.Duration
	)
	done := make(chan struct{})
	for i := range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(5 * time.Millisecond):
				}
				begin := time.Now()
				err := harness.PingEcho(forwards[i%len(forwards)], 20*time.Second)
				mu.Lock()
				if err == nil {
					worked++
					slowest = max(slowest, time.Since(begin))
				}
				mu.Unlock()
			}
		})
	}
	return func() (int, time.Duration) {
		close(done)
		wg.Wait()
		return worked, slowest
	}
}

// TestSyslog exports the audit log to a real syslog server over TLS. It hangs, is killed
// and comes back: nothing is lost, and no stream waits for it.
func TestSyslog(t *testing.T) {
	deadline(t)
	echo := harness.Serve(t, harness.Echo)
	dir := t.TempDir()
	ca := newCA(t)
	caFile, certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	write(t, caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}))
	ca.issue(t, 2, certFile, keyFile)
	server := harness.StartRsyslog(t, certFile, keyFile, caFile)
	hub := harness.StartHub(t, programs, harness.HubSpec{Args: []string{"--audit-syslog", server.Addr, "--audit-syslog-ca-file", caFile}})
	hub.StartAgent(t, harness.PartySpec{Allow: rules([]string{echo})})
	args, forwards := forwardArgs(t, "edge", []string{echo})
	hub.StartProxy(t, harness.PartySpec{Args: args})
	if err := harness.PingEcho(forwards[0], 10*time.Second); err != nil {
		t.Fatal(err)
	}

	// arrived waits until the server has written all that the hub knows now.
	arrived := func(when string) {
		t.Helper()
		missing := make(map[string]entry)
		for _, org := range []string{"", "default"} {
			for _, e := range auditLog(t, hub, org) {
				missing[e.ID] = e
			}
		}
		n := len(missing)
		took := harness.Eventually(t, 60*time.Second, when+": all records are at the syslog server", func() error {
			for _, m := range server.Messages(t) {
				e, err := parseEntry(m.Text)
				if err != nil {
					return harness.Permanent(fmt.Errorf("the text of a message is %q: %w", m.Text, err))
				}
				delete(missing, e.ID)
			}
			if len(missing) > 0 {
				return fmt.Errorf("%d of %d are not", len(missing), n)
			}
			return nil
		})
		t.Logf("%s: %d records, the last after %v", when, n, took.Round(time.Millisecond))
	}
	arrived("at first")

	// A server that hangs takes bytes until buffers are full, and says nothing.
	stop := busy(forwards)
	if err := server.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	server.Kill() // with what it had read and not written
	time.Sleep(3 * time.Second)
	worked, slowest := stop()
	if worked < 100 || slowest > 5*time.Second {
		t.Errorf("while the server was away %d streams worked, and one took %v", worked, slowest)
	}
	hub.Admin(t, "robot", "create", "meanwhile", "--description", "quotes \" ] \\ and ünïcödé")
	lag := func() float64 {
		t.Helper()
		v, err := hub.Metrics.Value("postern_audit_sink_lag_seconds")
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	harness.Eventually(t, 20*time.Second, "the hub tells that the server is behind", func() error {
		if lag() == 0 {
			return fmt.Errorf("it tells of no lag")
		}
		return nil
	})
	server.Start(t)
	arrived("after it was killed")
	harness.Eventually(t, 20*time.Second, "the hub tells that the server has all", func() error {
		if v := lag(); v != 0 {
			return fmt.Errorf("it tells of a lag of %v s", v)
		}
		return nil
	})

	checkSyslog(t, hub, server.Messages(t))
}

// checkSyslog checks that a server has read messages as they were meant, and that they
// make whole chains.
func checkSyslog(t *testing.T, hub *harness.Hub, messages []harness.SyslogMessage) {
	t.Helper()
	chains := map[string]map[uint64]string{}
	for _, m := range messages {
		var e struct {
			entry
			Organization string `json:"organization"`
			OK           bool   `json:"ok"`
		}
		if err := json.Unmarshal([]byte(m.Text), &e); err != nil {
			t.Fatal(err)
		}
		priority := "110" // log audit, informational
		if !e.OK {
			priority = "108"
		}
		if m.Version != "1" || m.Priority != priority || m.App != "postern" || m.ID != e.Action || m.Hostname == "" ||
			!strings.HasPrefix(m.Data, "[postern@32473 ") || !strings.Contains(m.Data, ` id="`+e.ID+`"`) {
			t.Fatalf("rsyslog has read %+v", m)
		}
		chain := chains[e.Organization]
		if chain == nil {
			chain = map[uint64]string{}
			chains[e.Organization] = chain
		}
		if before, twice := chain[e.Sequence]; twice && before != m.Text {
			t.Fatalf("record %d arrived as\n%s\nand as\n%s", e.Sequence, before, m.Text)
		}
		chain[e.Sequence] = m.Text
	}
	if len(chains) != 2 {
		t.Errorf("there are records of %v", slices.Collect(maps.Keys(chains)))
	}
	dir := t.TempDir()
	key := filepath.Join(dir, "key.pem")
	write(t, key, []byte(hub.Admin(t, "audit", "key")))
	for org, chain := range chains {
		var b strings.Builder
		for _, seq := range slices.Sorted(maps.Keys(chain)) {
			fmt.Fprintln(&b, chain[seq])
		}
		file := filepath.Join(dir, org+".jsonl")
		if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Logf("log of %q: %d records\n%s", org, len(chain), hub.Admin(t, "audit", "verify", "-f", file, "--public-key", key))
	}
	t.Logf("%d messages in all", len(messages))
}

// tenant is an organization with an agent and a proxy of its own.
type tenant struct {
	organization string
	forwards     []string
	follower     *harness.Process
}

// follow begins to follow the tenant's audit log.
func (one *tenant) follow(t *testing.T, hub *harness.Hub) {
	t.Helper()
	one.follower = harness.Start(t, harness.Spec{
		Name: "audit of " + one.organization, Path: hub.Programs.Postern, Env: hub.AdminEnv(), StopsBadly: true,
		Args: []string{"audit", "--since", "0", "--follow", "-o", "json", "-a", one.organization},
	})
}

// followed returns the records that the follower was shown.
func (one *tenant) followed(t *testing.T) (all []entry) {
	t.Helper()
	for line := range strings.Lines(one.follower.Log()) {
		if !strings.HasPrefix(line, "{") || !strings.HasSuffix(line, "}\n") {
			continue // what it says when the hub goes, and what was cut off with it
		}
		e, err := parseEntry(strings.TrimSuffix(line, "\n"))
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, e)
	}
	return all
}

// TestHubIsKilledWithRecordsUnderWay kills the hub twice while streams of two
// organizations open and close. Afterwards each chain is whole, holds all that anybody
// was ever shown, and one account of every stream that the agents served.
func TestHubIsKilledWithRecordsUnderWay(t *testing.T) {
	deadline(t)
	echo := harness.Serve(t, harness.Echo)
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	tenants := []*tenant{{organization: "default"}, {organization: "acme"}}
	var stops []func() (int, time.Duration)
	for _, one := range tenants {
		hub.StartAgent(t, harness.PartySpec{Organization: one.organization, Allow: rules([]string{echo})})
		args, forwards := forwardArgs(t, "edge", []string{echo})
		hub.StartProxy(t, harness.PartySpec{Organization: one.organization, Args: args})
		one.forwards = forwards
		if err := harness.PingEcho(forwards[0], 10*time.Second); err != nil {
			t.Fatal(err)
		}
		stops = append(stops, busy(forwards))
	}
	shown := make(map[string]map[string]string) // by organization and ID
	for round := range 2 {
		for _, one := range tenants {
			one.follow(t, hub)
		}
		change := fmt.Sprintf("round-%d", round)
		hub.Admin(t, "robot", "create", change)
		for _, one := range tenants {
			harness.Eventually(t, 20*time.Second, "hundreds of records are shown", func() error {
				all := one.followed(t)
				seen := one.organization != "default" || slices.ContainsFunc(all, func(e entry) bool { return strings.Contains(e.Object, change) })
				if len(all) < 300*(round+1) || !seen {
					return fmt.Errorf("%d are, the change among them: %v", len(all), seen)
				}
				return nil
			})
		}
		hub.Kill()
		for _, one := range tenants {
			<-one.follower.Done()
			if shown[one.organization] == nil {
				shown[one.organization] = make(map[string]string)
			}
			for _, e := range one.followed(t) {
				shown[one.organization][e.ID] = e.line
			}
		}
		hub.Start(t)
		for _, one := range tenants {
			harness.Eventually(t, 30*time.Second, "streams open again", func() error { return harness.PingEcho(one.forwards[0], 5*time.Second) })
		}
	}
	for i, one := range tenants {
		worked, _ := stops[i]()
		checkKilled(t, hub, one.organization, worked, shown[one.organization])
	}
	t.Log(hub.Admin(t, "audit", "verify", "--of-hub"))
}

// checkKilled checks a log for what was shown of it, and for one account of each of the
// streams that worked.
func checkKilled(t *testing.T, hub *harness.Hub, organization string, worked int, shown map[string]string) {
	t.Helper()
	var all []entry
	streams := make(map[string]bool)
	harness.Eventually(t, 60*time.Second, "the agent's records are in the log", func() error {
		all = auditLog(t, hub, organization)
		for _, e := range all {
			if e.Reporter == "agent" && (e.Action == "stream" || e.Action == "open") {
				streams[e.Stream] = true
			}
		}
		if len(streams) < worked {
			return fmt.Errorf("of %d streams that worked %d have a record", worked, len(streams))
		}
		return nil
	})
	ids, accounts := make(map[string]string), make(map[string]uint64)
	for _, e := range all {
		if before, twice := ids[e.ID]; twice {
			t.Errorf("%s: a record is there twice:\n%s\n%s", organization, before, e.line)
		}
		ids[e.ID] = e.line
		if e.Action == "lost" {
			t.Errorf("%s: records are lost: %s", organization, e.line)
		}
		if e.Stream != "" {
			account := e.Reporter + " " + e.Action + " " + e.Stream
			if before, twice := accounts[account]; twice {
				t.Errorf("%s: records %d and %d tell the same of a stream: %s", organization, before, e.Sequence, e.line)
			}
			accounts[account] = e.Sequence
		}
	}
	for id, line := range shown {
		if ids[id] != line {
			t.Errorf("%s: what was shown is not there any more: %s\n%s", organization, line, ids[id])
		}
	}
	t.Logf("%s: %d streams worked, %d have records, %d records in all, %d were shown before a kill\n%s", organization, worked, len(streams), len(all),
		len(shown), hub.Admin(t, "audit", "verify", "-a", organization))
}
