package config

import (
	"fmt"
	"math"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Audit is how long a hub keeps its audit log, and where it sends it.
type Audit struct {
	AuditMaxAge            time.Duration
	AuditMaxBytes          int64 // on disk, for each organization
	AuditOpenAfter         time.Duration
	AuditFile              string // JSON lines are appended to it
	AuditWebhookURL        string // https://…, to which they are posted
	AuditWebhookSecretFile string // key of their signatures
	AuditWebhookCAFile     string // PEM; empty: the system's CAs
	AuditSyslog            string // HOST:PORT of a syslog server that speaks TLS
	AuditSyslogCAFile      string // PEM; empty: the system's CAs
}

func (a *Audit) fields() []*Field {
	return []*Field{
		age("audit-max-age", &a.AuditMaxAge, "how long audit records are kept, for example 90d"),
		volume("audit-max-bytes", &a.AuditMaxBytes, "how much room on disk each organization's audit records may take; the oldest go first"),
		openAfterField(&a.AuditOpenAfter),
		text("audit-file", "FILE", &a.AuditFile, "append audit records to this file, as JSON lines; it may be moved away at any time"),
		link("audit-webhook-url", &a.AuditWebhookURL, "post audit records to this https:// address, as JSON lines"),
		text("audit-webhook-secret-file", "FILE", &a.AuditWebhookSecretFile, "secret that signs what is posted: 16 characters at least"),
		text("audit-webhook-ca-file", "FILE", &a.AuditWebhookCAFile, "CA certificate of --audit-webhook-url; without it the system's CAs are trusted"),
		text("audit-syslog", "HOST:PORT", &a.AuditSyslog, "send audit records to this syslog server, by RFC 5424 over TLS"),
		text("audit-syslog-ca-file", "FILE", &a.AuditSyslogCAFile, "CA certificate of --audit-syslog; without it the system's CAs are trusted"),
	}
}

// openAfterField is of what a hub says of the streams through its own proxies, and an
// agent of its streams.
func openAfterField(p *time.Duration) *Field {
	return period("audit-open-after", p, "streams that end in order within this time are one audit record, others have one when they open "+
		"and one when they close; 0s: all have two")
}

func (c *checker) openAfter(d time.Duration) {
	if d < 0 || d > maxOpenAfter {
		c.fail("audit-open-after", "", "%s is out of bounds: want between 0s and %s", d, maxOpenAfter)
	}
}

// Bounds of the audit log. Less room than this is gone with one flood of opens.
const (
	day           = 24 * time.Hour
	minAuditAge   = time.Hour
	maxAuditAge   = 10 * 365 * day
	minAuditBytes = 1 << 20
	maxAuditBytes = 1 << 40

	defaultOpenAfter = 2 * time.Second
	maxOpenAfter     = time.Minute
)

func (a *Audit) check(c *checker) {
	if a.AuditMaxAge < minAuditAge || a.AuditMaxAge > maxAuditAge {
		c.fail("audit-max-age", "", "%s is out of bounds: want between %s and %s", showAge(a.AuditMaxAge), showAge(minAuditAge), showAge(maxAuditAge))
	}
	if a.AuditMaxBytes < minAuditBytes || a.AuditMaxBytes > maxAuditBytes {
		c.fail("audit-max-bytes", "", "%s is out of bounds: want between %s and %s", showVolume(a.AuditMaxBytes), showVolume(minAuditBytes), showVolume(maxAuditBytes))
	}
	c.openAfter(a.AuditOpenAfter)
	if a.AuditWebhookURL != "" {
		u, err := url.Parse(a.AuditWebhookURL)
		if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Fragment != "" || u.User != nil {
			c.fail("audit-webhook-url", "write https://HOST[:PORT]/PATH; who sends is proved by --audit-webhook-secret-file",
				"%q is not an address to post to", redactURL(a.AuditWebhookURL))
		}
		c.require("audit-webhook-secret-file", a.AuditWebhookSecretFile)
	}
	if a.AuditSyslog != "" {
		if host, port, err := net.SplitHostPort(a.AuditSyslog); err != nil || host == "" || !validPort(port, false) {
			c.fail("audit-syslog", "write HOST:PORT, for example syslog.example.org:6514", "%q is not the address of a syslog server", a.AuditSyslog)
		}
	}
	for _, pair := range [][3]string{
		{"audit-webhook-secret-file", a.AuditWebhookSecretFile, a.AuditWebhookURL},
		{"audit-webhook-ca-file", a.AuditWebhookCAFile, a.AuditWebhookURL}, {"audit-syslog-ca-file", a.AuditSyslogCAFile, a.AuditSyslog},
	} {
		if pair[1] != "" && pair[2] == "" {
			c.fail(pair[0], "say where the records go, too", "it is set, and records are not sent there")
		}
	}
}

// age makes the field of a setting that is a long time: days have a unit, "90d".
func age(name string, p *time.Duration, usage string) *Field {
	f := period(name, p, usage)
	plain := f.set
	f.set = func(s string) error {
		if digits, ok := strings.CutSuffix(strings.TrimSpace(s), "d"); ok {
			if n, err := strconv.ParseUint(digits, 10, 16); err == nil {
				*p = time.Duration(n) * day
				return nil
			}
		}
		return plain(s)
	}
	f.get = func() string { return showAge(*p) }
	return f
}

func showAge(d time.Duration) string {
	if d > 0 && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	return d.String()
}

// volume makes the field of a setting that is a number of bytes: "1GiB".
func volume(name string, p *int64, usage string) *Field {
	return &Field{
		Name: name, Usage: usage, kind: "BYTES",
		set: func(s string) error {
			n, err := parseVolume(strings.TrimSpace(s))
			if err == nil {
				*p = n
			}
			return err
		},
		get: func() string { return showVolume(*p) },
	}
}

func volumeUnits() []string { return []string{"TiB", "GiB", "MiB", "KiB", "B"} }

func parseVolume(s string) (int64, error) {
	shift := 40
	for _, unit := range volumeUnits() {
		if digits, ok := strings.CutSuffix(s, unit); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 63)
			if err != nil || n > math.MaxInt64>>shift {
				break
			}
			return int64(n) << shift, nil
		}
		shift -= 10
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && n >= 0 {
		return n, nil
	}
	return 0, fmt.Errorf("%q is not an amount of bytes: write a number with a unit, for example 512MiB or 1GiB", s)
}

func showVolume(n int64) string {
	shift := 40
	for _, unit := range volumeUnits() {
		if n != 0 && n%(1<<shift) == 0 {
			return strconv.FormatInt(n>>shift, 10) + unit
		}
		shift -= 10
	}
	return "0B"
}
