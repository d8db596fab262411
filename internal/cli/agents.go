package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
)

func newAgents(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "agents",
		Aliases: []string{"agent-list"},
		Short:   "List an organization's agents",
		Long:    "List an organization's agents. GATEWAY tells which of them are clusters at the hub's gateway.",
		Example: "  postern agents\n  postern agents -a acme -o json",
		Args:    command.Exact(),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			all, err := c.Agents(ctx, org)
			if err != nil {
				return err
			}
			return output.print(w.Stdout, nonNil(all), func(r *rows) {
				r.row("AGENT", "STATE", "REPLICAS", "VERSION", "STREAMS", "GATEWAY", "LABELS", "LAST ERROR")
				for _, a := range all {
					r.row(agentCells(a)...)
				}
			})
		})
	}
	return cmd
}

// agentCells sums up the replicas of an agent.
func agentCells(a api.Agent) []string {
	ready, streams, gateway := 0, 0, ""
	version := ""
	var worst api.Replica // the one with the latest error
	for _, r := range a.Replicas {
		if r.State == api.StateReady {
			ready++
		}
		streams += r.Streams
		if r.Gateway {
			gateway = "yes"
		}
		switch {
		case version == "":
			version = r.Version
		case r.Version != "" && r.Version != version:
			version = "mixed"
		}
		if r.LastErrorAt.After(worst.LastErrorAt) {
			worst = r
		}
	}
	return []string{a.ID, a.State, fmt.Sprintf("%d/%d", ready, len(a.Replicas)), version, strconv.Itoa(streams), gateway, access.FormatLabels(a.Labels), lastError(worst)}
}

func lastError(r api.Replica) string {
	if r.LastError == "" {
		return ""
	}
	if when := ago(time.Now(), r.LastErrorAt); when != "" {
		return when + ": " + r.LastError
	}
	return r.LastError
}

func newStatus(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [AGENT]",
		Short: "Show every replica of an agent, or of all agents",
		Long: `Show every replica of an agent, or of all agents of an organization: its state and
since when, its version and address, the round-trip time to the hub, open streams, bytes
carried, which policy is in force, and the last error.`,
		Example: "  postern status\n  postern status office -o yaml",
		Args:    command.AtMost("AGENT"),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			var agents []api.Agent
			var err error
			if len(args) == 0 {
				agents, err = c.Agents(ctx, org)
			} else {
				agents = make([]api.Agent, 1)
				agents[0], err = c.Agent(ctx, org, args[0])
			}
			if err != nil {
				return err
			}
			if len(agents) == 0 && *output == formatTable {
				fmt.Fprintf(w.Stderr, "no agent of organization %s has connected\n", org)
			}
			if err := output.print(w.Stdout, nonNil(agents), func(r *rows) { statusTable(r, agents) }); err != nil {
				return err
			}
			if *output == formatTable {
				rejectedPolicies(w.Stderr, agents)
				revokedAgents(w.Stderr, agents)
			}
			return nil
		})
	}
	return cmd
}

func statusTable(r *rows, agents []api.Agent) {
	now := time.Now()
	const columns = 14
	r.row("AGENT", "REPLICA", "STATE", "SINCE", "VERSION", "ZONE", "ADDRESS", "RTT", "STREAMS", "PIPES", "IN", "OUT", "POLICY", "LAST ERROR")
	for _, a := range agents {
		if a.Revoked != nil && len(a.Replicas) == 0 {
			cells := make([]string, columns)
			cells[0], cells[2], cells[3] = a.ID, a.State, ago(now, a.Revoked.Revoked)
			r.row(cells...)
		}
		for _, p := range a.Replicas {
			r.row(a.ID, p.Name, p.State, ago(now, p.Since), p.Version, p.Zone, p.Address, millis(p.RTTMillis),
				strconv.Itoa(p.Streams), strconv.Itoa(p.Pipes), size(p.BytesIn), size(p.BytesOut), policyCell(p.Policy), lastError(p))
		}
	}
}

// policyCell sums up which policy is in force.
func policyCell(p *api.Policy) string {
	switch {
	case p == nil:
		return ""
	case p.Error != "":
		return p.Version + " (newer one rejected)"
	default:
		return p.Version + " (" + count(p.Rules, "rule") + ")"
	}
}

// rejectedPolicies tells why policy files are not in force.
func rejectedPolicies(w io.Writer, agents []api.Agent) {
	now := time.Now()
	for _, a := range agents {
		for _, r := range a.Replicas {
			if p := r.Policy; p != nil && p.Error != "" {
				fmt.Fprintf(w, "%s/%s keeps policy %s, in force since %s; its newest policy file was rejected %s: %s\n",
					a.ID, r.Name, p.Version, ago(now, p.Since), ago(now, p.ErrorAt), p.Error)
			}
		}
	}
}

// revokedAgents tells which agents are kept out, and how each may come back.
func revokedAgents(w io.Writer, agents []api.Agent) {
	now := time.Now()
	for _, a := range agents {
		if v := a.Revoked; v != nil {
			fmt.Fprintf(w, "%s was revoked %s%s; let it in again with: postern agent restore %s -a %s\n",
				a.ID, ago(now, v.Revoked), printable(because(v)), a.ID, a.Organization)
		}
	}
}

// because tells by whom and why, as far as that is known.
func because(v *api.Revocation) string {
	text := ""
	if v.By != "" {
		text += " by " + v.By
	}
	if v.Reason != "" {
		text += " (" + v.Reason + ")"
	}
	return text
}
