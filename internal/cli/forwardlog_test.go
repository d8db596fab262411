package cli

import (
	"bytes"
	"strings"
	"testing"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
)

func TestForwardLog(t *testing.T) {
	for level, want := range map[string][]string{
		"error": {"failed", "advice"},
		"warn":  {"warned", "failed", "advice"},
		"info":  {"warned", "told", "failed", "advice"},
		"debug": {"warned", "told", "whispered", "failed", "advice"},
	} {
		var out bytes.Buffer
		w := command.World{Stderr: &out, Env: config.Environment{LookupEnv: func(string) (string, bool) { return "", false }}}
		log, err := forwardLog(w, config.Log{Format: "text", Level: level})
		if err != nil {
			t.Fatal(err)
		}
		log = log.With("a", 1).WithGroup("g")
		log.Warn("warned")
		log.Info("told")
		log.Debug("whispered")
		log.Info("failed", "leg", "policy")
		log.Info("advice", "hint", "do it")
		var got []string
		for line := range strings.Lines(out.String()) {
			got = append(got, strings.Fields(line)[2])
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s: %v, want %v", level, got, want)
		}
	}
	if _, err := forwardLog(command.World{}, config.Log{Level: "loud"}); command.ExitCode(err) != command.ExitUsage {
		t.Errorf("level loud: %v", err)
	}
}
