package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/cli/command"
)

// auditLimit bounds how long a log is read or followed; a hub cuts followers off
// after a day.
const auditLimit = 25 * time.Hour

// auditFlags are the flags of a command that reads an audit log.
type auditFlags struct {
	since, until  string
	follow        bool
	failed, ok    bool
	hubLog        bool
	actions       []string
	actor, agent  string
	target, which string
}

func newAudit(w command.World) *cobra.Command {
	f := &auditFlags{}
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show who did what: sign-ins, changes, streams, refusals",
		Long: `Show an organization's audit log: who did what, from where, and what became of it.
The oldest record comes first. It takes the permission to read it: the roles owner and
auditor, or the administrator's token.

With -o json each record is one line of JSON, as it is kept; "postern audit verify" checks
such lines.`,
		Example: `  # What was refused in the last day, and what happens from now on.
  postern audit --since 24h --failed --follow

  # Which streams a robot opened through an agent.
  postern audit --since 7d --actor robot:ci --agent office --action open,close

  # Everything, for other programs.
  postern audit --since 0 -o json > audit.jsonl`,
		Args: command.Exact(),
	}
	output := formatTable
	cmd.Flags().VarP(&output, "output", "o", "how to print: table or json")
	flags := cmd.Flags()
	flags.StringVar(&f.since, "since", "1h", "show records since then: a length of time such as 90m or 7d, a time as in RFC 3339, or 0 for all")
	flags.StringVar(&f.until, "until", "", "show records before then")
	flags.BoolVar(&f.follow, "follow", false, "go on with new records")
	flags.BoolVar(&f.failed, "failed", false, "only what failed or was refused")
	flags.BoolVar(&f.ok, "ok", false, "only what did not fail")
	flags.StringSliceVar(&f.actions, "action", nil, "only these: "+actionNames())
	flags.StringVar(&f.actor, "actor", "", "only who did it, as KIND:NAME, or KIND: for all of a kind")
	flags.StringVar(&f.agent, "agent", "", "only this agent")
	flags.StringVar(&f.target, "target", "", "only where the target, its address or the object holds this text")
	flags.StringVar(&f.which, "stream", "", "only the stream or trace with this ID")
	flags.BoolVar(&f.hubLog, "of-hub", false, "the hub's own log instead of an organization's: starts, organizations, strangers who were refused")
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if output == formatYAML {
			return &command.UsageError{Err: errors.New("-o yaml: want table or json")}
		}
		query, err := f.query(time.Now())
		if err != nil {
			return &command.UsageError{Err: err}
		}
		p := newAuditPrinter(w.Stdout, output)
		return hub.callFor(cmd, auditLimit, func(ctx context.Context, c *api.Client, org string) error {
			return c.Audit(ctx, f.log(org), query, p.line)
		})
	}
	cmd.AddCommand(newAuditVerify(w), newAuditKey(w))
	return cmd
}

func actionNames() string {
	names := make([]string, 0, len(audit.Actions()))
	for _, a := range audit.Actions() {
		names = append(names, string(a))
	}
	return strings.Join(names, ", ")
}

// log returns whose log is meant.
func (f *auditFlags) log(org string) string {
	if f.hubLog {
		return ""
	}
	return org
}

// query returns the filter as parameters.
func (f *auditFlags) query(now time.Time) (url.Values, error) {
	filter := audit.Filter{Actor: f.actor, Agent: f.agent, Target: f.target, Stream: f.which, Failed: f.failed, OK: f.ok}
	if f.failed && f.ok {
		return nil, errors.New("--failed and --ok: no record is both; want one of them, or neither for all")
	}
	var err error
	if filter.Since, err = moment("--since", f.since, now); err != nil {
		return nil, err
	}
	if filter.Until, err = moment("--until", f.until, now); err != nil {
		return nil, err
	}
	for _, a := range f.actions {
		one, err := audit.ParseAction(a)
		if err != nil {
			return nil, fmt.Errorf("--action: %w", err)
		}
		filter.Actions = append(filter.Actions, one)
	}
	values := url.Values(filter.Values())
	if _, err := audit.ParseFilter(values); err != nil {
		return nil, fmt.Errorf("--actor: %w", err)
	}
	if f.follow {
		values.Set("follow", "true")
	}
	return values, nil
}

// moment reads a time, or how long ago it was.
func moment(flag, s string, now time.Time) (time.Time, error) {
	if s == "" || s == "0" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return now.AddDate(0, 0, -int(n)), nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return time.Time{}, fmt.Errorf("%s: %q is neither a length of time such as 90m or 7d nor a time as in RFC 3339", flag, s)
	}
	return now.Add(-d), nil
}

// auditPrinter prints records as they come.
type auditPrinter struct {
	w      io.Writer
	output format
	titled bool
}

func newAuditPrinter(w io.Writer, output format) *auditPrinter {
	return &auditPrinter{w: w, output: output}
}

func (p *auditPrinter) line(line []byte) error {
	if p.output == formatJSON {
		_, err := p.w.Write(append(line, '\n'))
		return wrote(err)
	}
	if !p.titled {
		p.titled = true
		p.row("TIME", "ACTION", "RESULT", "ACTOR", "SOURCE", "WHAT", "DETAIL")
	}
	e, err := audit.ParseEntry(line)
	if err != nil {
		p.row("?", "?", "unreadable", "", "", "", err.Error())
		return nil
	}
	result := "ok"
	if !e.OK {
		result = e.Code
	}
	actor := ""
	if e.Actor.Kind != "" {
		actor = e.Actor.String()
	}
	p.row(e.Time.Local().Format("2006-01-02 15:04:05"), string(e.Action), result, actor, e.Source, auditWhat(&e), auditDetail(&e))
	return nil
}

// row prints columns of fixed width, since the next record may be an hour away.
func (p *auditPrinter) row(cells ...string) {
	widths := []int{19, 10, 15, 24, 15, 44, 0}
	var b strings.Builder
	for i, c := range cells {
		if c == "" {
			c = "-"
		}
		c = printable(c)
		b.WriteString(c)
		if i < len(cells)-1 {
			b.WriteString(strings.Repeat(" ", max(widths[i]-len([]rune(c)), 0)+2))
		}
	}
	fmt.Fprintln(p.w, b.String())
}

// auditWhat says what a record is about.
func auditWhat(e *audit.Entry) string {
	switch {
	case e.Action == audit.Request:
		return strings.TrimSpace(e.Agent + ": " + e.What + " " + e.Object)
	case e.Target != "" && e.Agent != "":
		return e.Agent + "/" + e.Target
	case e.What != "" && e.Object != "":
		return e.What + " " + e.Object
	default:
		return e.Object + e.What
	}
}

// auditDetail says what else is worth a look.
func auditDetail(e *audit.Entry) string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if e.Reason != "" {
		add("%s", e.Reason)
	}
	if e.Action == audit.Close || e.Action == audit.Whole {
		add("%s in, %s out, %s", size(e.BytesIn), size(e.BytesOut), e.Duration.Round(time.Millisecond))
	}
	if e.Action == audit.Request {
		if e.User != "" {
			add("as %s", e.User)
		}
		if e.Status > 0 {
			add("status %d in %s", e.Status, e.Duration.Round(time.Millisecond))
		}
	}
	if e.Count > 0 {
		add("%d times", e.Count)
	}
	if !e.Received.IsZero() {
		add("heard of %s", e.Received.Local().Format("2006-01-02 15:04:05"))
	}
	return strings.Join(parts, "; ")
}

func newAuditKey(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "key",
		Short:   "Print the public key that verifies audit logs",
		Long:    "Print the public key of the hub that signs audit logs, in PEM. Keep it where the exported records are verified.",
		Example: "  postern audit key > audit-key.pem",
		Args:    command.Exact(),
	}
	hub := bindHub(w, cmd)
	ofHub := cmd.Flags().Bool("of-hub", false, "ask for the hub's own log, as somebody who may not read an organization's")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			head, err := c.AuditHead(ctx, (&auditFlags{hubLog: *ofHub}).log(org))
			if err != nil {
				return err
			}
			_, err = io.WriteString(w.Stdout, head.PublicKey)
			return wrote(err)
		})
	}
	return cmd
}
