package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const pinA, pinB = "sha256:" +
	"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "sha256:" +
	"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

// TestOrganizations reads a list that leaves out what is common, and looks what each
// entry has in the end.
func TestOrganizations(t *testing.T) {
	agent, _, err := load(t, []string{"--name=r1"}, map[string]string{"ACME_TOKEN": " s3cret\n", "AGENT_PROXY": "http://proxy:3128"}, `
connectUrl: tls://hub.example.org
caFile: hub.crt
agentId: office
zone: cellar
privateKeyFile: office.key
deny: ["tcp:*:22"]
organizations:
  - organization: acme
    tokenEnv: ACME_TOKEN
    allow: ["tcp:db:5432"]
    deny: ["tcp:db:5433"]
  - organization: globex
    agentId: outpost
    policyFile: globex.yaml
    zone: east
  - organization: default
    alias: initech
    connectUrl: wss://hub.example.com
    caPin: `+pinB+`
    proxyUrl: http://other:3128
    tokenFile: initech.json
  - organization: hooli
    caPin: `+pinA+`
    privateKeyFile: hooli.key
`)
	if err != nil {
		t.Fatal(err)
	}
	type short struct {
		Label, Agent, URL, CA, Pin, Proxy, TokenFile, Token, KeyFile, Allow, Deny, Policy, Zone string
	}
	var got []short
	for _, a := range agent.Each() {
		if a.Name != "r1" || len(a.Organizations) != 0 {
			t.Errorf("%s: replica %q, %d organizations", a.Label(), a.Name, len(a.Organizations))
		}
		got = append(got, short{a.Label(), a.AgentID, a.ConnectURL, a.CAFile, a.CAPin, a.ProxyURL, a.TokenFile, a.Token.Reveal(), a.PrivateKeyFile,
			strings.Join(a.Allow, " "), strings.Join(a.Deny, " "), a.PolicyFile, a.Zone})
	}
	const hub, proxy = "tls://hub.example.org", "http://proxy:3128"
	want := []short{
		{"acme", "office", hub, "hub.crt", "", proxy, "", "s3cret", "", "tcp:db:5432", "tcp:*:22 tcp:db:5433", "", "cellar"},
		{"globex", "outpost", hub, "hub.crt", "", proxy, "", "", "office.key", "", "tcp:*:22", "globex.yaml", "east"},
		{"initech", "office", "wss://hub.example.com", "", pinB, "http://other:3128", "initech.json", "", "", "", "tcp:*:22", "", "cellar"},
		{"hooli", "office", hub, "", pinA, proxy, "", "", "hooli.key", "", "tcp:*:22", "", "cellar"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestOneOrganization(t *testing.T) {
	agent, _, err := load(t, enough, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if each := agent.Each(); len(each) != 1 || each[0].Label() != "acme" || each[0].TokenFile != "t.json" {
		t.Errorf("flags mean %+v", each)
	}
	agent, _, err = load(t, nil, nil, "organizations:\n- {organization: acme, connectUrl: 'tls://hub.example.org', agentId: office, tokenFile: t.json}\n")
	if err != nil {
		t.Fatal(err)
	}
	if each := agent.Each(); len(each) != 1 || each[0].ID() != agent.Each()[0].ID() || each[0].ConnectURL != "tls://hub.example.org" {
		t.Errorf("a list of one means %+v", each)
	}
}

func TestOrganizationsErrors(t *testing.T) {
	const common = "connectUrl: tls://h\nagentId: a\n"
	for _, tt := range []struct {
		name, file string
		flags      []string
		env        map[string]string
		want       string
	}{
		{name: "unknown key", file: common + "organizations:\n- organization: o\n  tokenfile: t\n",
			want: `agent.yaml:5: unknown setting "tokenfile"; did you mean "tokenFile"?`},
		{name: "secret in the file", file: common + "organizations:\n- organization: o\n  token: abc\n",
			want: `agent.yaml:5: "token" is a secret and does not belong in this file; keep it in a file of its own, named by tokenFile, or in a variable, named by tokenEnv`},
		{name: "key twice", file: common + "organizations:\n- organization: o\n  zone: x\n  tokenFile: t\n  zone: y\n",
			want: "organizations[0].zone (agent.yaml:7): zone is given twice, first in line 5"},
		{name: "wrong type", file: common + "organizations:\n- {organization: o, tokenFile: t, allow: kubernetes}\n",
			want: `organizations[0].allow (agent.yaml:4): want a list: one "- RULE" a line`},
		{name: "no list", file: common + "organizations: {organization: o}\n",
			want: `organizations (agent.yaml:3): want a list: "- " begins each entry`},
		{name: "empty list", file: common + "organizations: []\n",
			want: "organizations (agent.yaml:3): is an empty list; remove the line, or write an entry"},
		{name: "no mapping", file: common + "organizations:\n- acme\n",
			want: `agent.yaml:4: want settings as "key: value" lines`},
		{name: "alias of YAML", file: common + "organizations:\n- &x {organization: o, tokenFile: t}\n- *x\n",
			want: "organizations (agent.yaml:4): anchors and aliases are not supported; write the value out\n" +
				"organizations (agent.yaml:5): anchors and aliases are not supported; write the value out"},
		{name: "organization twice", file: common + "organizations:\n- {organization: o, tokenFile: t}\n- {organization: p, tokenFile: t}\n" +
			"- {organization: o, alias: q, connectUrl: 'tls://H:4222', tokenFile: u}\n",
			want: "organizations[2] (agent.yaml:6): organization o of the hub tls://H:4222 is listed twice, first in agent.yaml:4; remove one of the entries"},
		{name: "name twice", file: common + "organizations:\n- {organization: o, tokenFile: t}\n- {organization: o, connectUrl: 'tls://other', tokenFile: t}\n",
			want: "organizations[1] (agent.yaml:5): o is the name of two entries, first in agent.yaml:4; give one of them an alias"},
		{name: "nothing common", file: "organizations:\n- zone: x\n",
			want: "organizations[0].organization (agent.yaml:2): is not set; name the organization of this entry\n" +
				"organizations[0].connectUrl (agent.yaml:2): is not set; give it in the entry, or for all with --connect-url or connectUrl\n" +
				"organizations[0].agentId (agent.yaml:2): is not set; give it in the entry, or for all with --agent-id or agentId\n" +
				"organizations[0].tokenFile (agent.yaml:2): is not set; give the entry a tokenFile, tokenEnv, privateKeyFile or privateKeyEnv, or all a common privateKeyFile"},
		{name: "values", file: common + "organizations:\n- {organization: O!, alias: a b, tokenFile: t, tokenEnv: X, allow: [x], connectUrl: h}\n",
			want: `organizations[0].organization (agent.yaml:4): organization "O!": want 1 to 63 characters of a-z, 0-9 and '-', with none of '-' at either end` + "\n" +
				`organizations[0].alias (agent.yaml:4): alias "a b": want 1 to 63 characters of a-z, 0-9 and '-', with none of '-' at either end` + "\n" +
				`organizations[0].connectUrl (agent.yaml:4): "h" is not a URL; write tls://HOST or tls://HOST:PORT, for example tls://hub.example.org:4222, or wss://HOST where only web traffic passes` + "\n" +
				`organizations[0].allow (agent.yaml:4): rule "x": want kubernetes or tcp:HOST:PORT; examples: kubernetes, tcp:db.internal:5432, tcp:*.svc.cluster.local:443, tcp:10.0.0.0/8:5000-5999, tcp:[2001:db8::/32]:*` + "\n" +
				"organizations[0].tokenEnv (agent.yaml:4): an agent shows one token or one key; give one of tokenFile, tokenEnv, privateKeyFile, privateKeyEnv and workloadTokenFile\n" +
				"organizations[0].tokenEnv (agent.yaml:4): the variable X is not set"},
		{name: "another hub without trust", file: "caPin: " + pinA + "\nagentId: a\norganizations:\n- {organization: o, connectUrl: 'wss://h', tokenFile: t}\n",
			want: "organizations[0].caPin (agent.yaml:4): is needed with wss://, so that what ends TLS on the way cannot pose as the hub; give the entry the pin that its hub prints at its start, or its ca.crt with caFile"},
		{name: "both at once", flags: []string{"--organization=x"}, env: map[string]string{"UPBOUND_TOKEN": "s3cret", "POSTERN_ALLOW": "kubernetes"},
			file: common + "policyFile: p\norganizations:\n- {organization: o, tokenFile: t}\n",
			want: "organization (flag --organization): cannot be given together with the list of organizations (agent.yaml:4); make it an entry of the list, or leave the list out\n" +
				"token (UPBOUND_TOKEN): cannot be given together with the list of organizations (agent.yaml:4); give each entry its tokenFile or tokenEnv: a token is good for one organization\n" +
				"allow (POSTERN_ALLOW): cannot be given together with the list of organizations (agent.yaml:4); give each entry what its organization may reach\n" +
				"policy-file (agent.yaml:3): cannot be given together with the list of organizations (agent.yaml:4); give each entry its policyFile; it may be the same file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := load(t, tt.flags, tt.env, tt.file)
			if err == nil {
				t.Fatal("no error")
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

// TestOrganizationFlagOnce: a second --organization is no silent replacement of the first.
func TestOrganizationFlagOnce(t *testing.T) {
	agent := DefaultAgent()
	f := Bind(&agent).Field("organization")
	if err := f.Set("acme"); err != nil {
		t.Fatal(err)
	}
	if err := f.Set("globex"); err == nil || !strings.Contains(err.Error(), "in its configuration file, below organizations") {
		t.Errorf("a second one: %v", err)
	}
}

func TestOrganizationsRender(t *testing.T) {
	const file = `connectUrl: tls://h
agentId: a
organizations:
  - organization: o
    proxyUrl: http://u:hunter2@p:1
    tokenEnv: O_TOKEN
    allow: [kubernetes]
  - organization: p
    privateKeyEnv: P_KEY
`
	secrets := map[string]string{"O_TOKEN": "hunter2", "P_KEY": "hunter3"}
	_, set, err := load(t, []string{"--name=r1"}, secrets, file)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := set.Render(&out, false); err != nil {
		t.Fatal(err)
	}
	want := `connectUrl: tls://h # agent.yaml:1
agentId: a # agent.yaml:2
name: r1 # flag --name
organizations: # agent.yaml:3
  - organization: o # agent.yaml:4
    proxyUrl: http://u:xxxxx@p:1 # agent.yaml:5
    tokenEnv: O_TOKEN # agent.yaml:6
    allow: # agent.yaml:7
      - kubernetes
    gateway: false # default
  - organization: p # agent.yaml:8
    privateKeyEnv: P_KEY # agent.yaml:9
    gateway: false # default
auditOpenAfter: 2s # default
gateway: false # default
drainTimeout: 25s # default
logFormat: auto # default
logLevel: info # default
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("rendered (-want +got):\n%s", diff)
	}
	if got := set.Values()["organizations"]; got != "o,p" {
		t.Errorf("values: %q", got)
	}
	if _, _, err := load(t, nil, secrets, out.String()); err != nil {
		t.Errorf("what was rendered cannot be loaded: %v", err)
	}
}
