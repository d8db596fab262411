package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/wire"
)

func newAccess(w command.World) *cobra.Command {
	cmd := command.Group("access", "Say at the hub who may reach which agents and targets",
		newAccessGrant(w), newAccessList(w), newAccessRevoke(w), newAccessExplain(w))
	cmd.Long = `Access grants say who may reach which targets through which agents. A stream needs both: an
access grant at the hub, and a rule of the agent's owner (--allow). What no grant allows is
refused. A new organization has grants for its machines, so its robots' proxies may reach its
agents; people need one.`
	return cmd
}

func newAccessGrant(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "grant",
		Short: "Let somebody reach targets through agents",
		Long: `Let somebody reach targets through agents. It holds for new streams at once, everywhere.

--to names a user, a group of users, a robot or workload (for what enrolled with it), or a
proxy by its name; KIND:* means all of a kind. --agent names one agent, agents by their
labels, or all (*). A target is a rule as in --allow, or gateway for the API server by the
hub's URL; tcp:*:* means every address.`,
		Example: `  postern access grant --to group:sre --agent office --target tcp:db.example.org:5432
  postern access grant --to user:ann@example.org --agent env=test,team=shop --target kubernetes --target 'tcp:*:443'
  postern access grant --to robot:ci --agent '*' --target 'tcp:10.0.0.0/8:*' --expires 8h`,
		Args: command.Exact(),
	}
	req := api.CreateAccessGrant{}
	cmd.Flags().StringVar(&req.To, "to", "", "who: user:NAME, group:NAME, robot:NAME, workload:NAME, proxy:NAME, or KIND:*")
	cmd.Flags().StringVar(&req.Agent, "agent", "", "through which agents: an ID, KEY=VALUE[,KEY=VALUE] for those with labels, or *")
	cmd.Flags().StringArrayVar(&req.Targets, "target", nil, "`RULE` of what may be reached: gateway, kubernetes, tcp:HOST:PORT, tcp:CIDR:PORT-PORT, tcp:*:*; repeatable")
	cmd.Flags().StringVar(&req.ID, "id", "", "a name for the grant; without it the hub makes one")
	cmd.Flags().StringVar(&req.Note, "note", "", "what it is for")
	expires := cmd.Flags().Duration("expires", 0, "how long it holds, such as 8h; 0: until it is revoked")
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkGrant(req, *expires); err != nil {
			return &command.UsageError{Err: err}
		}
		req.ExpiresIn = int64(*expires / time.Second)
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			g, err := c.GrantAccess(ctx, org, req)
			if err != nil {
				return err
			}
			if *output == formatTable {
				fmt.Fprintf(w.Stderr, "%s may reach %s on %s in organization %s%s; take it back with: postern access revoke %s\n",
					g.To, g.Agent, strings.Join(g.Targets, ", "), org, until(g.Expires), g.ID)
				_, err := fmt.Fprintln(w.Stdout, g.ID)
				return wrote(err)
			}
			return output.print(w.Stdout, g, nil)
		})
	}
	return cmd
}

// checkGrant checks what can be checked here, so that mistakes need no hub.
func checkGrant(req api.CreateAccessGrant, expires time.Duration) error {
	switch {
	case req.To == "":
		return errors.New("nobody is named: --to KIND:NAME")
	case req.Agent == "":
		return errors.New("no agent is named: --agent ID, --agent KEY=VALUE, or --agent '*' for all")
	case len(req.Targets) == 0:
		return errors.New("no target is named: --target RULE; --target 'tcp:*:*' means every address")
	case expires < 0 || expires > 0 && expires < time.Second:
		return fmt.Errorf("--expires %s: want a second at least", expires)
	}
	if _, err := policy.ParseWhom(req.To); err != nil {
		return fmt.Errorf("--to %w", err)
	}
	if _, err := access.ParseSelector(req.Agent); err != nil {
		return fmt.Errorf("--agent: %w", err)
	}
	for _, t := range req.Targets {
		if _, err := policy.ParseRule(t); err != nil {
			return fmt.Errorf("--target: %w", err)
		}
	}
	return nil
}

func until(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " until " + t.Local().Format(time.DateTime)
}

func newAccessList(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the access grants of an organization",
		Example: "  postern access list\n  postern access list -a acme -o json",
		Args:    command.Exact(),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			all, err := c.AccessGrants(ctx, org)
			if err != nil {
				return err
			}
			return output.print(w.Stdout, nonNil(all), func(r *rows) {
				r.row("ID", "TO", "AGENT", "TARGETS", "EXPIRES", "CREATED", "BY", "NOTE")
				for _, g := range all {
					r.row(g.ID, g.To, g.Agent, strings.Join(g.Targets, ", "), expiryCell(g), date(g.Created, ""), g.CreatedBy, g.Note)
				}
			})
		})
	}
	return cmd
}

func expiryCell(g api.AccessGrant) string {
	switch {
	case g.Expires.IsZero():
		return "never"
	case g.Expired:
		return "expired"
	default:
		return g.Expires.Local().Format(time.DateTime)
	}
}

func newAccessRevoke(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "revoke ID",
		Aliases: []string{"rm", "delete"},
		Short:   "Take an access grant back",
		Long: `Take an access grant back. Within two seconds no agent lets in what only this grant allowed,
and open streams that only it allowed are reset.`,
		Example: "  postern access revoke g-7qk2mw4xfa",
		Args:    command.Exact("ID"),
	}
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			return deleted(w, c.RevokeAccess(ctx, org, args[0]), "access grant %s of organization %s", args[0], org)
		})
	}
	return cmd
}

func newAccessExplain(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain SUBJECT AGENT TARGET",
		Short: "Say whether somebody may reach a target, and which rule on which side decides",
		Long: `Say whether somebody may reach a target through an agent, and which rule decides on each of
the two sides: the access grants at the hub, and the rules of the agent's owner, which each
connected replica is asked for. Nothing is resolved or dialled.

SUBJECT is user:NAME, robot:NAME, workload:NAME or proxy:NAME. A user counts as in the groups
that the identity provider named at the last sign-in; with --group in others. Whether an address
is allowed that TARGET resolves to at the agent, --address tells.

The exit code is 0 if the target is allowed; 3 if it is refused, or if that depends on its
address; and 4 if no replica of the agent is there to answer.`,
		Example: `  postern access explain user:ann@example.org office gateway
  postern access explain user:ann@example.org office tcp:db.example.org:5432 --group sre
  postern access explain robot:ci office kubernetes
  postern access explain proxy:gateway office tcp:db.example.org:5432 --address 10.1.2.3`,
		Args: command.Exact("SUBJECT", "AGENT", "TARGET"),
	}
	q := api.AccessQuery{}
	groups := cmd.Flags().StringArray("group", nil, "a `NAME` of a group that the user is in, in place of those of the last sign-in; repeatable")
	proxy := cmd.Flags().String("proxy", "", "the `NAME` of the proxy that is used")
	cmd.Flags().StringVar(&q.Address, "address", "", "an IP address that TARGET resolves to at the agent")
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q.From, q.Agent, q.Target = []string{args[0]}, args[1], args[2]
		for _, g := range *groups {
			q.From = append(q.From, "group:"+g)
		}
		if *proxy != "" {
			q.From = append(q.From, "proxy:"+*proxy)
		}
		_, err := policy.ParseAsker(q.From...)
		if err == nil {
			_, err = wire.ParseTarget(q.Target)
		}
		if err != nil {
			return &command.UsageError{Err: err}
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			e, err := c.ExplainAccess(ctx, org, q)
			if err != nil {
				return err
			}
			if err := output.print(w.Stdout, e, func(r *rows) { explainTable(r, e) }); err != nil {
				return err
			}
			switch e.Verdict {
			case api.VerdictAllowed:
				return nil
			case api.VerdictUnknown:
				return wire.Fail(wire.LegAgent, wire.CodeNoAgent, "no replica of agent %s says what its owner's rules are", e.Agent).
					WithHint("see: postern status %s", e.Agent)
			default:
				return &command.ExitError{Code: command.ExitDenied, Err: errors.New(e.Verdict)}
			}
		})
	}
	return cmd
}

func explainTable(r *rows, e api.AccessExplanation) {
	r.row(e.Verdict, strings.Join(e.From, ", ")+" to "+e.Agent+" on "+e.Target)
	if e.Address != "" {
		r.row("address", e.Address)
	}
	if !e.GroupsOf.IsZero() {
		r.row("groups", "as of the last sign-in, "+e.GroupsOf.Local().Format(time.DateTime))
	}
	if e.Labels != "" {
		r.row("labels", e.Labels)
	}
	hub := sideCell(e.Hub)
	if e.Hub.Origin != "" {
		hub = e.Hub.Verdict + " by access grant " + e.Hub.Origin + ", to " + e.Hub.To + " on " + e.Hub.Rule + until(e.Hub.Until)
	}
	r.row("hub", hub)
	if e.Hub.Hint != "" {
		r.row("", e.Hub.Hint)
	}
	for _, one := range e.Replicas {
		if one.Error != "" {
			r.row("agent, replica "+one.Name, "no answer: "+one.Error)
			continue
		}
		r.row("agent, replica "+one.Name, sideCell(one.Owner)+", policy "+one.Policy)
		if one.Behind {
			r.row("", "it does not know the newest access grants; those that it knows: "+sideCell(*one.Grants))
		}
	}
	if len(e.Replicas) == 0 {
		r.row("agent", "no replica is connected")
	}
}

// sideCell says what one side says.
func sideCell(s api.AccessSide) string {
	text := s.Verdict
	if s.Rule != "" {
		text += " by rule " + s.Rule
		if s.Origin != "" {
			text += " (" + s.Origin + ")"
		}
	}
	if s.Reason != "" {
		text += ": " + s.Reason
	}
	if s.Missing != "" {
		text += "; would help: " + s.Missing
	}
	return text
}

// newLabel returns "agent label".
func newLabel(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "label AGENT [KEY=VALUE|KEY-]...",
		Short: "Show or change the labels of an agent, by which access grants choose",
		Long: `Show or change the labels of an agent, by which access grants choose agents. KEY=VALUE gives a
label, or changes it; KEY- takes it away. The labels are kept at the hub: the agent has no
say in them, and need neither be registered nor connected.`,
		Example: `  postern agent label office
  postern agent label office env=production team=shop
  postern agent label office team-`,
		Args: command.AtLeast("AGENT", "KEY=VALUE"),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkName("agent ID", args[0]); err != nil {
			return err
		}
		changes, err := parseLabels(args[1:])
		if err != nil {
			return &command.UsageError{Err: err}
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			var l api.AgentLabels
			var err error
			if len(changes) == 0 {
				l, err = c.AgentLabels(ctx, org, args[0])
			} else {
				l, err = c.LabelAgent(ctx, org, args[0], changes)
			}
			if err != nil {
				return err
			}
			return output.print(w.Stdout, l, func(r *rows) {
				r.row("AGENT", "LABELS")
				r.row(l.Agent, access.FormatLabels(l.Labels))
			})
		})
	}
	return cmd
}

// parseLabels reads KEY=VALUE and KEY-.
func parseLabels(args []string) (map[string]string, error) {
	changes := make(map[string]string)
	for _, arg := range args {
		key, value, set := strings.Cut(arg, "=")
		if !set {
			var ok bool
			if key, ok = strings.CutSuffix(arg, "-"); !ok {
				return nil, fmt.Errorf("label %q: want KEY=VALUE, or KEY- to take it away", arg)
			}
			value = "x" // for the check of the key
		}
		if err := access.ValidateLabel(key, value); err != nil {
			return nil, err
		}
		if !set {
			value = ""
		}
		if _, twice := changes[key]; twice {
			return nil, fmt.Errorf("label %s is given twice", key)
		}
		changes[key] = value
	}
	return changes, nil
}
