package config

import (
	"path/filepath"
	"strings"
	"testing"

	"postern.dev/postern/internal/joinstring"
)

// TestDoctorProofs: the doctor takes what an agent or proxy proves itself with, knows whether
// that is the agent itself, and says what is missing.
func TestDoctorProofs(t *testing.T) {
	member := `{"connectUrl":"tls://plant.example.org","organization":"acme","agentId":"plant","joinId":"0123456789abcdef","keyId":"` + strings.Repeat("a", 64) + `"}`
	if _, err := joinstring.ParseMembership([]byte(member)); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{filepath.Join("plant", joinstring.MembershipFile): member}
	session := map[string]string{"context": "work", "hub": "https://hub.example.org", "organization": "acme"}
	for name, tt := range map[string]struct {
		flags    []string
		vars     map[string]string
		context  map[string]string
		asAgent  bool
		signedIn bool
		url      string // that is used
		want     string // in the error
	}{
		"token":             {flags: []string{"connect-url=tls://h", "token-file=t"}, url: "tls://h"},
		"token over state":  {flags: []string{"connect-url=tls://h", "token-file=t", "state=plant"}, url: "tls://h"},
		"key":               {flags: []string{"connect-url=tls://h", "private-key-file=k", "agent-id=office"}, asAgent: true, url: "tls://h"},
		"key over a token":  {flags: []string{"connect-url=tls://h", "private-key-file=k", "agent-id=office"}, vars: map[string]string{"POSTERN_TOKEN_FILE": "t"}, asAgent: true, url: "tls://h"},
		"key in the shell":  {flags: []string{"connect-url=tls://h", "agent-id=office"}, vars: map[string]string{"POSTERN_PRIVATE_KEY": "k"}, asAgent: true, url: "tls://h"},
		"key of whom":       {flags: []string{"connect-url=tls://h", "private-key-file=k"}, want: "agent-id"},
		"state":             {flags: []string{"state=plant"}, asAgent: true, url: "tls://plant.example.org"},
		"state, signed in":  {flags: []string{"state=plant"}, context: session, asAgent: true, url: "tls://plant.example.org"},
		"another's state":   {flags: []string{"state=plant", "agent-id=office"}, want: `"office" is not what`},
		"no state":          {flags: []string{"state=nothing"}, want: "no agent has joined with it"},
		"workload's agent":  {flags: []string{"connect-url=tls://h", "workload-token-file=w", "agent-id=office"}, asAgent: true, url: "tls://h"},
		"workload's proxy":  {flags: []string{"connect-url=tls://h", "workload-token-file=w", "proxy-name=ci", "agent-id=office"}, url: "tls://h"},
		"a replica's name":  {flags: []string{"connect-url=tls://h", "workload-token-file=w", "agent-id=office"}, vars: map[string]string{"POSTERN_NAME": "office-0"}, asAgent: true, url: "tls://h"},
		"workload of whom":  {flags: []string{"connect-url=tls://h", "workload-token-file=w"}, want: "agent-id"},
		"signed in":         {context: session, signedIn: true, url: "https://hub.example.org"},
		"signed in, a key":  {flags: []string{"private-key-file=k", "agent-id=office"}, context: session, asAgent: true, url: "https://hub.example.org"},
		"two proofs":        {flags: []string{"connect-url=tls://h", "private-key-file=k", "token-file=t", "agent-id=office"}, want: severalProofs},
		"nothing":           {flags: []string{"connect-url=tls://h"}, want: "token-file"},
		"signed in at else": {flags: []string{"connect-url=tls://h"}, context: session, want: "token-file"},
	} {
		t.Run(name, func(t *testing.T) {
			d := DefaultDoctor()
			set := Bind(&d)
			for _, f := range tt.flags {
				name, value, _ := strings.Cut(f, "=")
				if err := set.Field(name).Set(value); err != nil {
					t.Fatal(err)
				}
			}
			env := environment(tt.vars, files)
			if tt.context != nil {
				env.Context = func(string) (map[string]string, error) { return tt.context, nil }
			}
			switch err := set.Load(env); {
			case tt.want != "":
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %v; want %q", err, tt.want)
				}
			case err != nil:
				t.Error(err)
			case d.AsAgent() != tt.asAgent || d.SignedIn() != tt.signedIn || d.ConnectURL != tt.url:
				t.Errorf("as agent %v, signed in %v, %s", d.AsAgent(), d.SignedIn(), d.ConnectURL)
			}
		})
	}
}
