package observe

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestRedaction(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		log, err := NewLogger(&out, LogOptions{Format: format, Level: "debug"})
		if err != nil {
			t.Fatal(err)
		}
		log = log.With("busToken", "hunter2")
		log.Debug("request", "token", "hunter2", "Proxy-Authorization", []byte("hunter2"), "token_file", "shown.json",
			slog.Group("robot", "name", "shown", "client_secret", "hunter2"), "password", errors.New("hunter2"))
		log.WithGroup("db").Info("connect", "password", "hunter2", "cookie", "")
		got := out.String()
		if strings.Contains(got, "hunter2") {
			t.Errorf("%s: secret shown:\n%s", format, got)
		}
		for _, want := range []string{"shown.json", redacted, "shown"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", format, want, got)
			}
		}
	}
}

func TestFormats(t *testing.T) {
	var out bytes.Buffer
	log, err := NewLogger(&out, LogOptions{}) // a buffer is no terminal
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("not shown")
	log.Info("shown", "n", 1)
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line["msg"] != "shown" {
		t.Errorf("log %q: %v", out.String(), err)
	}
	if _, err := NewLogger(io.Discard, LogOptions{Format: "xml"}); err == nil {
		t.Error("format xml is accepted")
	}
	if _, err := NewLogger(io.Discard, LogOptions{Level: "loud"}); err == nil {
		t.Error("level loud is accepted")
	}
	if Terminal(&out, func(string) string { return "" }) {
		t.Error("a buffer is a terminal")
	}
}

func TestConsole(t *testing.T) {
	for _, tt := range []struct {
		name string
		log  func(*slog.Logger)
		want string
	}{
		{"plain", func(l *slog.Logger) { l.Info("hello") }, "INFO  hello\n"},
		{"values", func(l *slog.Logger) { l.Warn("m", "n", 1, "s", "a b", "d", 1234567*time.Microsecond, "e", "") }, `WARN  m n=1 s="a b" d=1.23s e=""` + "\n"},
		{"groups", func(l *slog.Logger) {
			l.With("a", 1).WithGroup("g").With("b", 2).Error("m", slog.Group("h", "c", 3), slog.Group("", "d", 4))
		}, "ERROR m a=1 g.b=2 g.h.c=3 g.d=4\n"},
		{"empty attributes", func(l *slog.Logger) { l.Info("m", slog.Attr{}, slog.Group("none")) }, "INFO  m\n"},
		{"no second line", func(l *slog.Logger) { l.Info("m\nERROR forged", "k\n", "v\n\x1b[2J") }, `INFO  m\nERROR forged k\n="v\n\x1b[2J"` + "\n"},
		{"odd level", func(l *slog.Logger) { l.Log(t.Context(), slog.LevelInfo+1, "m") }, "INFO+1 m\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			tt.log(slog.New(newConsole(&out, slog.LevelInfo, false)))
			_, got, _ := strings.Cut(out.String(), " ")
			if got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestConsoleColour(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(newConsole(&out, slog.LevelDebug, true))
	log.Debug("d")
	log.Error("e")
	for _, want := range []string{"\x1b[90mDEBUG\x1b[0m d\n", "\x1b[31mERROR\x1b[0m e\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %q", want, out.String())
		}
	}
}

func TestConsoleLinesAreWhole(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(newConsole(&out, slog.LevelInfo, false))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				log.With("k", "v").Info("message", "n", 1)
			}
		})
	}
	wg.Wait()
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 200 {
		t.Fatalf("%d lines", len(lines))
	}
	for _, line := range lines {
		if !strings.HasSuffix(line, " INFO  message k=v n=1") {
			t.Fatalf("line %q", line)
		}
	}
}
