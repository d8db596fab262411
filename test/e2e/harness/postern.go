package harness

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// readyTimeout is how long a role may take from its start to being ready, on a
// machine that has other things to do.
const readyTimeout = 30 * time.Second

// Hub is a running `postern hub`.
type Hub struct {
	*Process
	Programs *Programs
	Data     string // its state directory
	Addr     string // the one port
	Metrics  Metrics

	args   []string
	tokens map[string]string // organization to token file
}

// HubSpec says how to start a hub; the zero value is fine.
type HubSpec struct {
	Data string   // empty for a new directory
	Addr string   // the one port; empty for a free one
	Args []string // more arguments
}

// StartHub starts a hub and waits until it is ready.
func StartHub(t testing.TB, programs *Programs, spec HubSpec) *Hub {
	t.Helper()
	if spec.Data == "" {
		spec.Data = filepath.Join(t.TempDir(), "hub")
	}
	if spec.Addr == "" {
		spec.Addr = FreeAddr(t)
	}
	h := &Hub{Programs: programs, Data: spec.Data, Addr: spec.Addr, Metrics: Metrics(FreeAddr(t)), tokens: map[string]string{}}
	h.args = append([]string{"hub", "--data", h.Data, "--listen", h.Addr, "--metrics", string(h.Metrics)}, spec.Args...)
	h.Start(t)
	return h
}

// Start starts the hub's process again, with the same data and addresses.
func (h *Hub) Start(t testing.TB) {
	t.Helper()
	h.Process = Start(t, Spec{Name: "hub", Path: h.Programs.Postern, Args: h.args})
	WaitTCP(t, h.Addr, h.Process, readyTimeout)
	h.Metrics.WaitReady(t, h.Process, readyTimeout)
}

// CA returns the file of the hub's certificate authority.
func (h *Hub) CA() string { return filepath.Join(h.Data, "ca.crt") }

// URL returns the connect URL of the hub.
func (h *Hub) URL() string { return "tls://" + h.Addr }

// AdminEnv returns the environment in which a command acts as administrator.
func (h *Hub) AdminEnv() []string {
	return []string{
		"POSTERN_HUB=https://" + h.Addr,
		"POSTERN_TOKEN_FILE=" + filepath.Join(h.Data, "admin.token"),
		"POSTERN_CA_FILE=" + h.CA(),
	}
}

// Admin runs a command as administrator and returns what it printed.
func (h *Hub) Admin(t testing.TB, args ...string) string {
	t.Helper()
	stdout, stderr, err := h.TryAdmin(t, args...)
	if err != nil {
		t.Fatalf("postern %s: %v\n%s%s", strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout
}

// TryAdmin runs a command as administrator.
func (h *Hub) TryAdmin(t testing.TB, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return Try(t, 30*time.Second, h.AdminEnv(), h.Programs.Postern, args...)
}

// Token returns the file of a robot token of an organization, which is made
// when it is first asked for, except for "default".
func (h *Hub) Token(t testing.TB, organization string) string {
	t.Helper()
	if file, ok := h.tokens[organization]; ok {
		return file
	}
	if organization != "default" {
		h.Admin(t, "organization", "create", organization)
	}
	h.Admin(t, "robot", "create", "e2e", "-a", organization)
	file := filepath.Join(h.Data, "..", organization+"-token.json")
	h.Admin(t, "robot", "token", "create", "e2e", "test", "-f", file, "-a", organization)
	h.tokens[organization] = file
	return file
}

// Secrets returns the texts that no log may contain.
func (h *Hub) Secrets(t testing.TB) []string {
	t.Helper()
	admin, err := os.ReadFile(filepath.Join(h.Data, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{strings.TrimSpace(string(admin))}
	for _, file := range h.tokens {
		secrets = append(secrets, ReadToken(t, file).Token)
	}
	return secrets
}

// RobotToken is the content of a robot token's file.
type RobotToken struct {
	AccessID string `json:"accessId"`
	Token    string `json:"token"`
}

// ReadToken reads a robot token's file.
func ReadToken(t testing.TB, file string) RobotToken {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var token RobotToken
	if err := json.Unmarshal(text, &token); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if token.Token == "" || token.AccessID == "" {
		t.Fatalf("%s lacks accessId or token", file)
	}
	return token
}

// PartySpec says how to start an agent or a proxy.
type PartySpec struct {
	Organization string // "default" when empty
	AgentID      string // "edge" when empty
	Replica      string
	Token        string   // file; the organization's when empty
	Allow        []string // an agent's rules
	Args         []string // more arguments
	Env          []string // more environment
	SystemCAs    bool     // give no --ca-file
	Edge         bool     // run cmd/postern-agent
	NoWait       bool     // do not wait until it is ready
}

// Party is a running agent or proxy.
type Party struct {
	*Process
	Metrics Metrics
	HTTP    string // a proxy's HTTP listener
	SOCKS5  string // a proxy's SOCKS5 listener

	spec Spec
}

// StartAgent starts an agent and waits until it is ready.
func (h *Hub) StartAgent(t testing.TB, spec PartySpec) *Party {
	t.Helper()
	h.defaults(t, &spec)
	a := &Party{Metrics: Metrics(FreeAddr(t))}
	args := h.common(spec, a.Metrics)
	for _, rule := range spec.Allow {
		args = append(args, "--allow", rule)
	}
	if spec.Replica != "" {
		args = append(args, "--name", spec.Replica)
	}
	args = append(args, spec.Args...)
	name := strings.TrimSuffix("agent "+spec.AgentID+"/"+spec.Replica, "/")
	a.spec = Spec{Name: name, Path: h.Programs.Postern, Env: spec.Env, Args: append([]string{"agent"}, args...)}
	if spec.Edge {
		a.spec.Path, a.spec.Args = h.Programs.Agent, args
	}
	a.start(t, spec.NoWait)
	return a
}

// StartProxy starts a proxy for an agent and waits until it is ready.
func (h *Hub) StartProxy(t testing.TB, spec PartySpec) *Party {
	t.Helper()
	h.defaults(t, &spec)
	p := &Party{Metrics: Metrics(FreeAddr(t)), HTTP: FreeAddr(t), SOCKS5: FreeAddr(t)}
	args := append([]string{"proxy"}, h.common(spec, p.Metrics)...)
	args = append(args, "--http", p.HTTP, "--socks5", p.SOCKS5)
	p.spec = Spec{Name: "proxy", Path: h.Programs.Postern, Env: spec.Env, Args: append(args, spec.Args...)}
	p.start(t, spec.NoWait)
	return p
}

// StartForward starts `postern forward` and returns the address it listens on.
func (h *Hub) StartForward(t testing.TB, agent, target string) (*Process, string) {
	t.Helper()
	addr := FreeAddr(t)
	p := Start(t, Spec{
		Name: "forward", Path: h.Programs.Postern, Env: h.AdminEnv(),
		Args: []string{"forward", agent, target, "--listen", addr},
	})
	WaitTCP(t, addr, p, readyTimeout)
	return p, addr
}

func (h *Hub) defaults(t testing.TB, spec *PartySpec) {
	t.Helper()
	if spec.Organization == "" {
		spec.Organization = "default"
	}
	if spec.AgentID == "" {
		spec.AgentID = "edge"
	}
	if spec.Token == "" {
		spec.Token = h.Token(t, spec.Organization)
	}
}

// common returns the arguments that agents and proxies share. What the test
// gives itself comes later on the command line and wins.
func (h *Hub) common(spec PartySpec, metrics Metrics) []string {
	args := []string{
		"--connect-url", h.URL(), "--organization", spec.Organization, "--agent-id", spec.AgentID,
		"--token-file", spec.Token, "--metrics", string(metrics),
	}
	if !spec.SystemCAs && !slices.ContainsFunc(spec.Args, func(a string) bool { return strings.HasPrefix(a, "--ca-") }) {
		args = append(args, "--ca-file", h.CA())
	}
	return args
}

func (p *Party) start(t testing.TB, noWait bool) {
	t.Helper()
	p.Process = Start(t, p.spec)
	if !noWait {
		p.Metrics.WaitReady(t, p.Process, readyTimeout)
	}
}

// Restart starts the party again after its end, as it was.
func (p *Party) Restart(t testing.TB) {
	t.Helper()
	if p.Running() {
		t.Fatal(fmt.Errorf("%s is still running", p.Name))
	}
	p.start(t, false)
}
