package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/limit"
)

// newLimit returns "limit" with what can be done to limits.
func newLimit(w command.World) *cobra.Command {
	cmd := command.Group("limit", "See, set and remove limits of organizations, agents and proxies",
		newLimitList(w), newLimitSet(w), newLimitUnset(w))
	cmd.Aliases = []string{"limits"}
	cmd.Long = `How much an organization, an agent or a proxy may use at a hub: streams at once, opens per
second, bytes per second in both directions together. An organization has limits on agents
and on connections to the bus besides. Each stream needs room in the limits of its proxy,
its agent and their organization. Who has no limits of its own has those of the hub's
settings. A change holds at once, also for bytes of streams that are open.

The limits of an organization are the hub's administrator's to set, those of an agent or
proxy also the organization's.`
	return cmd
}

// limited are the flags that name whose limits a command is about.
type limited struct{ agent, proxy string }

func bindLimited(cmd *cobra.Command) *limited {
	l := &limited{}
	cmd.Flags().StringVar(&l.agent, "agent", "", "`ID` of an agent, whose limits are meant and not the organization's")
	cmd.Flags().StringVar(&l.proxy, "proxy", "", "`NAME` of a proxy, whose limits are meant and not the organization's; the hub's own are called hub")
	return l
}

// party returns the level and name that the flags tell.
func (l *limited) party() (level limit.Level, name string, err error) {
	switch {
	case l.agent != "" && l.proxy != "":
		return 0, "", &command.UsageError{Err: errors.New("--agent and --proxy: want one of them, or none for the organization")}
	case l.agent != "":
		return limit.Agent, l.agent, checkName("agent ID", l.agent)
	case l.proxy != "":
		return limit.Proxy, l.proxy, checkName("proxy name", l.proxy)
	default:
		return limit.Organization, "", nil
	}
}

// who names a party for people.
func who(level limit.Level, org, name string) string {
	return limit.Key{Level: level, Organization: org, Name: name}.String()
}

func newLimitSet(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set",
		Short: "Set limits of an organization, an agent or a proxy",
		Long: `Set limits of an organization, or with --agent or --proxy those of one of its own. What is
not given stays as it is. A value is a whole number or "unlimited"; bytes may have a unit, kB,
MB, GB, or KiB, MiB, GiB.`,
		Example: `  postern limit set --streams 1000 --opens-per-second 200 -a acme
  postern limit set --bytes-per-second 100MB -a acme --proxy ci
  postern limit set --streams unlimited -a acme --agent edge`,
		Args: command.Exact(),
	}
	var texts [limit.Kinds]string
	for k := range limit.Kind(limit.Kinds) {
		cmd.Flags().StringVar(&texts[k], k.String(), "", limitUsage(k))
	}
	whose := bindLimited(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		level, name, err := whose.party()
		if err != nil {
			return err
		}
		var l limit.Limits
		for k := range limit.Kind(limit.Kinds) {
			if !cmd.Flags().Changed(k.String()) {
				continue
			}
			v, err := limit.ParseValue(k, texts[k])
			if err != nil {
				return &command.UsageError{Err: fmt.Errorf("--%w", err)}
			}
			l = l.With(k, v)
		}
		if l == (limit.Limits{}) {
			return &command.UsageError{Err: errors.New("no limit is given: want one of --streams, --opens-per-second, --bytes-per-second, --agents, --connections")}
		}
		if err := l.Check(level); err != nil {
			return &command.UsageError{Err: err}
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			if _, err := c.SetLimits(ctx, org, level.String(), name, l); err != nil {
				return err
			}
			fmt.Fprintf(w.Stderr, "limits of %s set\n", who(level, org, name))
			return nil
		})
	}
	return cmd
}

func limitUsage(k limit.Kind) string {
	switch k {
	case limit.Streams:
		return "streams at once, at most `N`"
	case limit.Opens:
		return "streams opened per second, at most `N`, with bursts of two seconds' worth"
	case limit.Bytes:
		return "bytes per second in both directions together, at most `SIZE`; more has to wait"
	case limit.Agents:
		return "agents with credentials at once, at most `N`; of an organization only"
	default:
		return "connections to the bus at once, at most `N`; of an organization only"
	}
}

func newLimitUnset(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "unset",
		Aliases: []string{"rm"},
		Short:   "Take back the limits that were set",
		Long:    "Take back the limits that were set for an organization, or with --agent or --proxy for one of its own. Those of the hub's settings hold again.",
		Example: "  postern limit unset -a acme --proxy ci",
		Args:    command.Exact(),
	}
	whose := bindLimited(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		level, name, err := whose.party()
		if err != nil {
			return err
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			if err := c.RemoveLimits(ctx, org, level.String(), name); err != nil {
				return err
			}
			fmt.Fprintf(w.Stderr, "limits of %s are those of the hub's settings\n", who(level, org, name))
			return nil
		})
	}
	return cmd
}

func newLimitList(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls", "show"},
		Short:   "Show limits, and what is used of them",
		Long: `Show the limits of an organization, and of those of its agents and proxies that have some
of their own or were used in the last minutes. Before the slash stands what is in use at this
hub, after it the limit; * marks what was set with postern limit set. STREAMS are those through
the hub's own proxies. PIPES are those of other proxies, with the idle ones that they keep: as
many as streams are allowed, and a quarter more, 64 at least. REFUSED and WAITED count from the
hub's start.`,
		Example: "  postern limit list -a acme\n  postern limit list -o json",
		Args:    command.Exact(),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			all, err := c.Limits(ctx, org)
			if err != nil {
				return err
			}
			return output.print(w.Stdout, nonNil(all), func(r *rows) {
				r.row("OF", "NAME", "STREAMS", "PIPES", "OPENS/S", "BYTES/S", "AGENTS", "CONNECTIONS", "REFUSED", "WAITED")
				for _, p := range all {
					limitRow(r, p)
				}
			})
		})
	}
	return cmd
}

func limitRow(r *rows, p api.PartyLimits) {
	most := func(k limit.Kind) string {
		text := p.Limits.Get(k).Text(k)
		if text == "" {
			text = limit.Unlimited.Text(k)
		}
		if p.Set.Get(k) != limit.Unset {
			text += "*"
		}
		return text
	}
	agents, connections, name := "", "", p.Name
	if p.Level == api.LevelOrganization {
		name = p.Organization
		agents = fmt.Sprintf("%d/%s", p.Agents, most(limit.Agents))
		connections = fmt.Sprintf("%d/%s", p.Connections, most(limit.Connections))
	}
	var refused []string
	for k := range limit.Kind(limit.Kinds) {
		if n := p.Refusals[k.String()]; n > 0 {
			refused = append(refused, fmt.Sprintf("%d (%s)", n, k))
		}
	}
	waited := ""
	if p.ThrottledSeconds > 0 {
		waited = strconv.FormatFloat(p.ThrottledSeconds, 'f', 1, 64) + "s"
	}
	r.row(p.Level, name, fmt.Sprintf("%d/%s", p.Streams, most(limit.Streams)), strconv.FormatInt(p.Pipes, 10),
		most(limit.Opens), most(limit.Bytes), agents, connections, strings.Join(refused, ", "), waited)
}
