package config

import (
	"io/fs"
	"maps"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/joinstring"
)

func TestJoining(t *testing.T) {
	str := joinstring.String{
		ConnectURL: "tls://hub.example.org", Pins: []string{"sha256:" + strings.Repeat("ab", 32)}, Organization: "acme", Agent: "office",
		ID: "0123456789abcdef", Secret: strings.Repeat("00", 20), Expires: time.Unix(1e9, 0),
	}
	text, err := str.Encode()
	if err != nil {
		t.Fatal(err)
	}
	member := `{"connectUrl":"tls://old.example.org","caPin":"sha256:` + strings.Repeat("cd", 32) +
		`","organization":"acme","agentId":"office","joinId":"0123456789abcdef","keyId":"` + strings.Repeat("ab", 32) + `"}`
	type want struct {
		url, pin, caFile string
		problem          string
	}
	for _, tc := range []struct {
		name  string
		env   map[string]string
		files map[string]string
		want  want
	}{
		{"string in the environment", map[string]string{"POSTERN_JOIN": text}, nil, want{url: "tls://hub.example.org", pin: "sha256:ab"}},
		{"string in a file", map[string]string{"POSTERN_JOIN_FILE": "j"}, map[string]string{"j": text + "\n"}, want{url: "tls://hub.example.org", pin: "sha256:ab"}},
		{"a CA of the owner's", map[string]string{"POSTERN_JOIN": text, "POSTERN_CA_FILE": "my.crt"}, nil, want{url: "tls://hub.example.org", caFile: "my.crt"}},
		{"another way to the hub", map[string]string{"POSTERN_JOIN": text, "POSTERN_CONNECT_URL": "wss://hub"}, nil, want{url: "wss://hub", pin: "sha256:ab"}},
		{"joined", nil, map[string]string{"s/agent.json": member}, want{url: "tls://old.example.org", pin: "sha256:cd"}},
		{"joined, with newer authorities", nil, map[string]string{"s/agent.json": member, "s/ca.crt": "x"},
			want{url: "tls://old.example.org", caFile: "s/ca.crt"}},
		{"joined, and the file is gone", map[string]string{"POSTERN_JOIN_FILE": "j"}, map[string]string{"s/agent.json": member}, want{url: "tls://old.example.org", pin: "sha256:cd"}},
		{"joined with it", map[string]string{"POSTERN_JOIN": text}, map[string]string{"s/agent.json": member}, want{url: "tls://old.example.org", pin: "sha256:cd"}},
		{"joined with another", map[string]string{"POSTERN_JOIN": text}, map[string]string{"s/agent.json": strings.Replace(member, "0123", "aaaa", 1)},
			want{url: "tls://hub.example.org", pin: "sha256:ab"}},
		{"joined as another agent", map[string]string{"POSTERN_JOIN": text}, map[string]string{"s/agent.json": strings.Replace(member, "office", "plant", 1)},
			want{problem: "is that of agent plant of organization acme, and the join string is for agent office"}},
		{"another agent ID", map[string]string{"POSTERN_JOIN": text, "POSTERN_AGENT_ID": "plant"}, nil, want{problem: `"plant" is not what the join string says: "office"`}},
		{"another organization", map[string]string{"POSTERN_JOIN": text, "UPBOUND_ORG": "corp"}, nil, want{problem: `"corp" is not what the join string says`}},
		{"broken state", nil, map[string]string{"s/agent.json": "{"}, want{problem: "agent.json cannot be used"}},
		{"half a string", map[string]string{"POSTERN_JOIN": text[:99]}, nil, want{problem: "it is damaged"}},
		{"no file", map[string]string{"POSTERN_JOIN_FILE": "j"}, nil, want{problem: "j cannot be read: file does not exist"}},
		{"no state", map[string]string{"POSTERN_JOIN": text, "POSTERN_STATE": ""}, nil, want{problem: "state: is not set, and there is a join string"}},
		{"a token too", map[string]string{"POSTERN_JOIN": text, "POSTERN_TOKEN_FILE": "t"}, nil, want{problem: "connect-url"}},
		{"a workload's token too", map[string]string{"POSTERN_JOIN": text, "POSTERN_WORKLOAD_TOKEN_FILE": "t"}, nil, want{problem: "connect-url"}},
	} {
		env := map[string]string{"POSTERN_STATE": "s"}
		maps.Copy(env, tc.env)
		a := DefaultAgent()
		err := Bind(&a).Load(Environment{
			LookupEnv: func(k string) (string, bool) { v, ok := env[k]; return v, ok },
			ReadFile: func(name string) ([]byte, error) {
				if text, ok := tc.files[name]; ok {
					return []byte(text), nil
				}
				return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
			},
		})
		if tc.want.problem != "" {
			if err == nil || !strings.Contains(err.Error(), tc.want.problem) || strings.Contains(err.Error(), text[20:60]) {
				t.Errorf("%s: %v, want %q", tc.name, err, tc.want.problem)
			}
			continue
		}
		if err != nil || a.ConnectURL != tc.want.url || !strings.HasPrefix(a.CAPin, tc.want.pin) || a.CAFile != tc.want.caFile ||
			a.Organization != "acme" || a.AgentID != "office" {
			t.Errorf("%s: %v, %+v", tc.name, err, a.Party)
		}
	}
}
