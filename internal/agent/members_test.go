package agent

import (
	"testing"

	"postern.dev/postern/internal/config"
)

// TestShare: organizations share the files of the process, so that none can use up all.
func TestShare(t *testing.T) {
	for _, tt := range []struct {
		files uint64
		n     int
		want  int
	}{
		{0, 1, maxPipes}, // not known
		{1 << 40, 3, maxPipes},
		{1 << 20, 1, maxPipes},
		{1 << 20, 100, (1<<20 - 64 - 3200) / 200},
		{1024, 1, 464},
		{1024, 4, 104},
		{64, 2, 1},
	} {
		if got := share(tt.files, tt.n); got != tt.want {
			t.Errorf("%d files, %d organizations: %d pipes, want %d", tt.files, tt.n, got, tt.want)
		}
		if got := share(tt.files, tt.n); tt.files > 1000 && tt.files < 1<<32 && uint64(2*got*tt.n) > tt.files {
			t.Errorf("%d files, %d organizations: together they use more", tt.files, tt.n)
		}
	}
}

// TestPermit: the hint of a refusal names what the agent's owner has to change, and not
// a flag where a file decides.
func TestPermit(t *testing.T) {
	for _, tt := range []struct {
		cfg  config.Agent
		want string
	}{
		{config.Agent{}, "start the agent with --allow tcp:db:1"},
		{config.Agent{PolicyFile: "/etc/secret-place.yaml"}, "add tcp:db:1 to the allow rules in the agent's policy file"},
		{config.Agent{Party: config.Party{Organization: "acme"}, Listed: true},
			"add tcp:db:1 to what the agent allows organization acme in its configuration file"},
		{config.Agent{Listed: true, PolicyFile: "p"}, "add tcp:db:1 to the allow rules in the agent's policy file"},
	} {
		if got := permit(tt.cfg, "tcp:db:1"); got != tt.want {
			t.Errorf("%+v: %q", tt.cfg, got)
		}
	}
}
