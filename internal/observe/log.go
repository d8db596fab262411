package observe

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/term"
)

// redacted stands in logs in the place of a secret.
const redacted = "********"

// Keys of attributes that more than one package writes or reads.
const (
	KeyLeg  = "leg"  // a wire.Leg: what failed
	KeyHint = "hint" // what a person can do about it
)

// LogOptions says how to log.
type LogOptions struct {
	Format string // "text", "json", or "auto" or "": text on a terminal, JSON elsewhere
	Level  string // "debug", "info" or "", "warn", "error"
	Color  bool   // colour the level in text; see Terminal
}

// NewLogger returns a logger that writes to w. It hides the values of
// attributes whose names say that they are secrets, as a second line of
// defence: secrets should not be passed to a logger at all.
func NewLogger(w io.Writer, o LogOptions) (*slog.Logger, error) {
	var level slog.Level
	if o.Level != "" {
		if err := level.UnmarshalText([]byte(o.Level)); err != nil {
			return nil, fmt.Errorf("log level %q: want debug, info, warn or error", o.Level)
		}
	}
	format := o.Format
	if format == "" || format == "auto" {
		format = "json"
		if isTerminal(w) {
			format = "text"
		}
	}
	switch format {
	case "json":
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: forJSON})), nil
	case "text":
		return slog.New(newConsole(w, level, o.Color)), nil
	default:
		return nil, fmt.Errorf("log format %q: want auto, text or json", o.Format)
	}
}

// Terminal reports whether text written to w is seen in colour by a person: w
// is a terminal, and neither NO_COLOR (https://no-color.org) nor TERM=dumb says
// otherwise.
func Terminal(w io.Writer, getenv func(string) string) bool {
	return isTerminal(w) && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// forJSON is redact, and writes durations as people do, with a unit.
func forJSON(groups []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		return slog.String(a.Key, a.Value.Duration().String())
	}
	return redact(groups, a)
}

// redact hides the value of an attribute whose name says that it is a secret.
func redact(_ []string, a slog.Attr) slog.Attr {
	if isSecret(a.Key) && a.Value.Kind() != slog.KindGroup {
		if s, ok := a.Value.Any().(string); !ok || s != "" {
			a.Value = slog.StringValue(redacted)
		}
	}
	return a
}

// isSecret reports whether an attribute's name says that its value is a secret:
// it is or ends with one of a few words. "token_file" and "token_id" are none.
func isSecret(key string) bool {
	key = strings.ToLower(key)
	for _, word := range []string{"token", "secret", "password", "authorization", "cookie"} {
		if strings.HasSuffix(key, word) {
			return true
		}
	}
	return false
}
