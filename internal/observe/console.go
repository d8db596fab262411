package observe

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
)

// console is a slog.Handler for people at a terminal:
//
//	15:04:05 INFO  connected hub=tls://hub.example.org:4222 rtt=12ms
//
// It is for reading, not for parsing; programs get JSON.
type console struct {
	mu     *sync.Mutex // shared by all handlers derived from one: a line is written whole
	w      io.Writer
	level  slog.Level
	color  bool
	fixed  string // attributes of WithAttrs, already formatted
	prefix string // names of the open groups, each with a dot
}

func newConsole(w io.Writer, level slog.Level, color bool) *console {
	return &console{mu: new(sync.Mutex), w: w, level: level, color: color}
}

// Enabled implements slog.Handler.
func (c *console) Enabled(_ context.Context, l slog.Level) bool { return l >= c.level }

// Handle implements slog.Handler.
func (c *console) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	if !r.Time.IsZero() {
		b.WriteString(r.Time.Format(time.TimeOnly))
		b.WriteByte(' ')
	}
	level := r.Level.String()
	if c.color {
		b.WriteString(paint(r.Level, level))
	} else {
		b.WriteString(level)
	}
	for range max(1, 6-len(level)) {
		b.WriteByte(' ')
	}
	b.WriteString(printable(r.Message))
	b.WriteString(c.fixed)
	r.Attrs(func(a slog.Attr) bool {
		appendAttr(&b, c.prefix, a)
		return true
	})
	b.WriteByte('\n')
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := io.WriteString(c.w, b.String())
	return err
}

// WithAttrs implements slog.Handler.
func (c *console) WithAttrs(attrs []slog.Attr) slog.Handler {
	var b strings.Builder
	b.WriteString(c.fixed)
	for _, a := range attrs {
		appendAttr(&b, c.prefix, a)
	}
	d := *c
	d.fixed = b.String()
	return &d
}

// WithGroup implements slog.Handler.
func (c *console) WithGroup(name string) slog.Handler {
	d := *c
	if name != "" {
		d.prefix += name + "."
	}
	return &d
}

// appendAttr writes " key=value"; for a group, one such pair per member.
func appendAttr(b *strings.Builder, prefix string, a slog.Attr) {
	a = redact(nil, a)
	a.Value = a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return
	}
	if a.Value.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, member := range a.Value.Group() {
			appendAttr(b, prefix, member)
		}
		return
	}
	b.WriteByte(' ')
	b.WriteString(printable(prefix + a.Key))
	b.WriteByte('=')
	var text string
	switch a.Value.Kind() {
	case slog.KindTime:
		text = a.Value.Time().Format(time.RFC3339)
	case slog.KindDuration:
		text = short(a.Value.Duration()).String()
	default:
		text = a.Value.String()
	}
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == '"' || r == '=' || !unicode.IsPrint(r) }) {
		text = strconv.Quote(text)
	}
	b.WriteString(text)
}

// short rounds a duration to what a person wants to know.
func short(d time.Duration) time.Duration {
	switch {
	case d.Abs() >= time.Minute:
		return d.Round(time.Second)
	case d.Abs() >= time.Second:
		return d.Round(10 * time.Millisecond)
	case d.Abs() >= time.Millisecond:
		return d.Round(10 * time.Microsecond)
	default:
		return d
	}
}

// printable escapes what could forge a second line or move the cursor.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		q := strconv.Quote(s)
		return q[1 : len(q)-1]
	}
	return s
}

// paint colours a level's name with an ANSI escape sequence.
func paint(l slog.Level, name string) string {
	code := "32" // green
	switch {
	case l >= slog.LevelError:
		code = "31" // red
	case l >= slog.LevelWarn:
		code = "33" // yellow
	case l < slog.LevelInfo:
		code = "90" // grey
	}
	return "\x1b[" + code + "m" + name + "\x1b[0m"
}
