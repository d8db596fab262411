package config

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// environment makes an Environment of variables and files.
func environment(vars, files map[string]string) Environment {
	return Environment{
		LookupEnv: func(key string) (string, bool) { v, ok := vars[key]; return v, ok },
		ReadFile: func(name string) ([]byte, error) {
			if text, ok := files[name]; ok {
				return []byte(text), nil
			}
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		},
		Hostname: func() (string, error) { return "Build-Host.example.org", nil },
	}
}

// load binds an agent's settings, sets flags, and loads the rest.
func load(t *testing.T, flags []string, vars map[string]string, file string) (Agent, *Set, error) {
	t.Helper()
	agent := DefaultAgent()
	set := Bind(&agent)
	for _, flag := range flags {
		name, value, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
		if err := set.Field(name).Set(value); err != nil {
			t.Fatalf("flag %s: %v", flag, err)
		}
	}
	files := map[string]string{}
	if file != "" {
		files["agent.yaml"] = file
		if err := set.Field("config").Set("agent.yaml"); err != nil {
			t.Fatal(err)
		}
	}
	err := set.Load(environment(vars, files))
	return agent, set, err
}

var enough = []string{"--connect-url=tls://hub.example.org", "--organization=acme", "--agent-id=office", "--token-file=t.json"}

func TestPrecedence(t *testing.T) {
	file := "zone: from-file\nallow:\n  - tcp:file:1\n"
	env := map[string]string{"POSTERN_ZONE": "from-env", "POSTERN_ALLOW": "tcp:env:1, tcp:env:2"}
	for _, tt := range []struct {
		name  string
		flags []string
		env   map[string]string
		file  string
		zone  string
		allow []string
		from  string
	}{
		{"default", nil, nil, "", "", nil, "default"},
		{"file over default", nil, nil, file, "from-file", []string{"tcp:file:1"}, "agent.yaml:1"},
		{"environment over file", nil, env, file, "from-env", []string{"tcp:env:1", "tcp:env:2"}, "POSTERN_ZONE"},
		{"flag over environment", []string{"--zone=from-flag", "--allow=tcp:flag:1", "--allow=tcp:flag:2,tcp:flag:3"}, env, file,
			"from-flag", []string{"tcp:flag:1", "tcp:flag:2", "tcp:flag:3"}, "flag --zone"},
		{"an empty variable is not set", nil, map[string]string{"POSTERN_ZONE": ""}, file, "from-file", []string{"tcp:file:1"}, "agent.yaml:1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			agent, set, err := load(t, append(tt.flags, enough...), tt.env, tt.file)
			if err != nil {
				t.Fatal(err)
			}
			if agent.Zone != tt.zone {
				t.Errorf("zone = %q, want %q", agent.Zone, tt.zone)
			}
			if diff := cmp.Diff(tt.allow, agent.Allow); diff != "" {
				t.Errorf("allow (-want +got):\n%s", diff)
			}
			if from := set.Field("zone").Origin().String(); from != tt.from {
				t.Errorf("origin of zone = %q, want %q", from, tt.from)
			}
		})
	}
}

func TestWholeFile(t *testing.T) {
	agent, _, err := load(t, nil, map[string]string{"POD_NAME": "agent-7d9f"}, `
connectUrl: tls://hub.example.org:443
organization: acme
agentId: 0b1c0a52-7f4b-4d50-9a8e-3b5a6f4d2c11
tokenFile: /var/run/postern/token
caPin: sha256:`+strings.Repeat("ab", 32)+`
allow: [kubernetes, "tcp:db.example.org:5432"]
drainTimeout: 1m
logLevel: debug
`)
	if err != nil {
		t.Fatal(err)
	}
	want := Agent{
		Party: Party{
			Uplink:       Uplink{ConnectURL: "tls://hub.example.org:443", CAPin: "sha256:" + strings.Repeat("ab", 32)},
			Organization: "acme",
			AgentID:      "0b1c0a52-7f4b-4d50-9a8e-3b5a6f4d2c11",
			TokenFile:    "/var/run/postern/token",
			Name:         "agent-7d9f",
			DrainTimeout: time.Minute,
			Log:          Log{Format: "auto", Level: "debug"},
		},
		Allow:          []string{"kubernetes", "tcp:db.example.org:5432"},
		AuditOpenAfter: 2 * time.Second,
	}
	if diff := cmp.Diff(want, agent); diff != "" {
		t.Errorf("agent (-want +got):\n%s", diff)
	}
}

func TestAliases(t *testing.T) {
	agent, _, err := load(t, []string{"--connect-url=tls://h", "--agent-id=a"}, map[string]string{
		"UPBOUND_ORG": "acme", "UPBOUND_TOKEN": "s3cret", "AGENT_PROXY": "http://u:pw@proxy:3128",
	}, "")
	if err != nil {
		t.Fatal(err)
	}
	if agent.Organization != "acme" || agent.Token.Reveal() != "s3cret" || agent.ProxyURL != "http://u:pw@proxy:3128" {
		t.Errorf("organization %q, token %q, proxy %q", agent.Organization, agent.Token.Reveal(), agent.ProxyURL)
	}
	agent, _, err = load(t, []string{"--connect-url=tls://h", "--agent-id=a"}, map[string]string{
		"UPBOUND_ORG": "acme", "POSTERN_ORGANIZATION": "own", "UPBOUND_TOKEN": "x",
	}, "")
	if err != nil || agent.Organization != "own" {
		t.Errorf("organization %q, error %v: want the variable of the own name to win", agent.Organization, err)
	}
}

func TestTokenOrFile(t *testing.T) {
	base := []string{"--connect-url=tls://h", "--agent-id=a", "--organization=o"}
	secret := map[string]string{"POSTERN_TOKEN": "value"}
	for _, tt := range []struct {
		name  string
		flags []string
		file  string
		want  string
	}{
		{"environment alone", nil, "", "value"},
		{"flag over environment", []string{"--token-file=f"}, "", ""},
		{"environment over file", nil, "tokenFile: f\n", "value"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			agent, _, err := load(t, append(tt.flags, base...), secret, tt.file)
			if err != nil {
				t.Fatal(err)
			}
			if got := agent.Token.Reveal(); got != tt.want || (agent.TokenFile == "") != (got != "") {
				t.Errorf("token %q and file %q", got, agent.TokenFile)
			}
		})
	}
}

func TestFileErrors(t *testing.T) {
	for _, tt := range []struct{ name, file, want string }{
		{"unknown key", "zone: a\nconectUrl: x\n", `agent.yaml:2: unknown setting "conectUrl"; did you mean "connectUrl"?`},
		{"flag's spelling", "connect-url: x\n", `agent.yaml:1: unknown setting "connect-url"; did you mean "connectUrl"?`},
		{"nothing like it", "colour: x\n", `agent.yaml:1: unknown setting "colour"`},
		{"twice", "zone: a\nname: b\nzone: c\n", "zone (agent.yaml:3): zone is given twice, first in line 1"},
		{"secret", "token: abc\n", `agent.yaml:1: "token" is a secret and does not belong in this file; keep it in a file of its own, or in POSTERN_TOKEN`},
		{"list for text", "zone: [a]\n", "zone (agent.yaml:1): want a single ZONE"},
		{"text for list", "allow: kubernetes\n", `allow (agent.yaml:1): want a list: one "- RULE" a line`},
		{"bool for text", "\nzone: true\n", "zone (agent.yaml:2): true is not text; put it in quotes"},
		{"float for text", "zone: 1.10\n", "zone (agent.yaml:1): 1.10 is not text; put it in quotes"},
		{"nothing for text", "zone:\n", "zone (agent.yaml:1): has no value; give one or remove the line"},
		{"duration without unit", "drainTimeout: 30\n", `drain-timeout (agent.yaml:1): "30" is not a length of time: write a number with a unit, for example 30s, 5m or 1h`},
		{"alias", "zone: &z a\nname: *z\n", "zone (agent.yaml:1): anchors and aliases are not supported; write the value out\n" +
			"name (agent.yaml:2): anchors and aliases are not supported; write the value out"},
		{"two documents", "zone: a\n---\nzone: b\n", "agent.yaml: holds more than one YAML document, and only one is read"},
		{"a list", "- a\n", `agent.yaml:1: want settings as "key: value" lines`},
		{"not YAML", "zone: [a\n", "agent.yaml: is not YAML: line 1: did not find expected ',' or ']'"},
		{"all at once", "zone: true\nfoo: 1\nzone: a\n", "zone (agent.yaml:1): true is not text; put it in quotes\n" +
			`agent.yaml:2: unknown setting "foo"` + "\n" + "zone (agent.yaml:3): zone is given twice, first in line 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := load(t, enough, nil, tt.file)
			if err == nil {
				t.Fatal("no error")
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNoFile(t *testing.T) {
	_, _, err := load(t, append([]string{"--config=other.yaml"}, enough...), nil, "")
	want := "config (flag --config): cannot read other.yaml: file does not exist; name a YAML file that this user may read"
	if err == nil || err.Error() != want {
		t.Errorf("error = %v\nwant    %s", err, want)
	}
	if !errors.As(err, new(*SettingError)) {
		t.Error("not a SettingError")
	}
}

func TestEmptyFile(t *testing.T) {
	for _, file := range []string{"# nothing\n", "---\n", "{}\n"} {
		if _, _, err := load(t, enough, nil, file); err != nil {
			t.Errorf("file %q: %v", file, err)
		}
	}
}

func TestAgentErrors(t *testing.T) {
	for _, tt := range []struct{ flag, want string }{
		{"--connect-url=hub.example.org", `"hub.example.org" is not a URL; write tls://HOST`},
		{"--connect-url=http://hub", `"http://hub" begins with "http://"; write tls://HOST`},
		{"--connect-url=tls://", `"tls://" names no host; `},
		{"--connect-url=tls://u:secret@hub", `"tls://u:xxxxx@hub" carries a user name; credentials belong in --token-file`},
		{"--connect-url=tls://hub:99999", "the port must be between 1 and 65535"},
		{"--connect-url=tls://hub/path", "has more than a host and a port"},
		{"--organization=Acme!", `organization "Acme!": want 1 to 63 characters`},
		{"--agent-id=a.b", `agent ID "a.b": want 1 to 63 characters`},
		{"--name=-x", `replica name "-x": want`},
		{"--ca-pin=abc", `"abc" is not a pin: want sha256: and 64 hexadecimal digits; copy the line`},
		{"--proxy-url=socks5://p:1", `"socks5://p:1" is not the address of an HTTP proxy; write http://`},
		{"--proxy-url=http://u:secret@p:1", "a password on the command line can be read by everybody on this machine; put the URL into AGENT_PROXY"},
		{"--metrics=9090", `"9090" is not an address to listen on; write HOST:PORT`},
		{"--drain-timeout=-1s", "-1s is out of bounds"},
		{"--log-format=xml", `"xml" is not one of auto, text, json`},
		{"--log-level=loud", `"loud" is not one of debug, info, warn, error`},
	} {
		t.Run(tt.flag, func(t *testing.T) {
			name, _, _ := strings.Cut(tt.flag, "=")
			others := slices.DeleteFunc(slices.Clone(enough), func(f string) bool { return strings.HasPrefix(f, name+"=") })
			_, _, err := load(t, append(others, tt.flag), nil, "")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error = %v\nwant    …%s…", err, tt.want)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows a secret: %v", err)
			}
			name = strings.TrimPrefix(name, "--")
			if list := List(err); len(list) != 1 || list[0].Setting != name || list[0].Origin.Where != "flag --"+name {
				t.Errorf("errors = %+v, want one about %s", list, name)
			}
		})
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	_, _, err := load(t, nil, nil, "logLevel: loud\n")
	want := `connect-url: is not set; give it with --connect-url or POSTERN_CONNECT_URL or connectUrl in the configuration file
organization: is not set; give it with --organization or POSTERN_ORGANIZATION or organization in the configuration file
token-file: is not set; give it with --token-file or POSTERN_TOKEN_FILE or tokenFile in the configuration file
log-level (agent.yaml:1): "loud" is not one of debug, info, warn, error
agent-id: is not set; give it with --agent-id or POSTERN_AGENT_ID or agentId in the configuration file`
	if err == nil {
		t.Fatal("no error")
	}
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

func TestSecretIsMasked(t *testing.T) {
	s := Secret("hunter2")
	text, _ := s.MarshalText()
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "token", s)
	for _, shown := range []string{s.String(), fmt.Sprint(s), fmt.Sprintf("%#v %+v %q", s, s, s), string(text), log.String()} {
		if strings.Contains(shown, "hunter2") {
			t.Errorf("secret shown: %s", shown)
		}
	}
	if s.Reveal() != "hunter2" {
		t.Error("secret lost")
	}
}

func TestRender(t *testing.T) {
	agent, set, err := load(t, []string{"--connect-url=tls://h", "--agent-id=a", "--allow=kubernetes", "--name=r1"}, map[string]string{
		"POSTERN_ORGANIZATION": "acme", "POSTERN_TOKEN": "hunter2", "AGENT_PROXY": "http://u:hunter2@p:1",
	}, "zone: east\n")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := set.Render(&out, false); err != nil {
		t.Fatal(err)
	}
	want := `# token is ********, from POSTERN_TOKEN
connectUrl: tls://h # flag --connect-url
proxyUrl: http://u:xxxxx@p:1 # AGENT_PROXY
organization: acme # POSTERN_ORGANIZATION
agentId: a # flag --agent-id
name: r1 # flag --name
allow: # flag --allow
  - kubernetes
zone: east # agent.yaml:1
auditOpenAfter: 2s # default
gateway: false # default
drainTimeout: 25s # default
logFormat: auto # default
logLevel: info # default
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("rendered (-want +got):\n%s", diff)
	}
	again := DefaultAgent()
	if err := Bind(&again).reload(out.String()); err != nil {
		t.Fatalf("what was rendered cannot be loaded: %v", err)
	}
	agent.Token, agent.ProxyURL = "", again.ProxyURL
	again.Token = ""
	if diff := cmp.Diff(agent, again); diff != "" {
		t.Errorf("rendered and loaded again (-want +got):\n%s", diff)
	}
}

// reload loads settings from the text of a file alone.
func (s *Set) reload(text string) error {
	s.path = "f.yaml"
	return s.Load(environment(map[string]string{"POSTERN_TOKEN": "x"}, map[string]string{"f.yaml": text}))
}
