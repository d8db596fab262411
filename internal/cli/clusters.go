package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
)

// cluster is an agent at the gateway, for people and programs.
type cluster struct {
	Name     string            `json:"name"`
	State    string            `json:"state"`
	Access   string            `json:"access,omitempty"` // what the hub's access grants say to you; nothing: the hub does not tell
	URL      string            `json:"url"`
	Replicas int               `json:"replicas"` // that are ready
	Labels   map[string]string `json:"labels,omitempty"`
}

func newClusters(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "clusters",
		Short: "List the clusters at the gateway",
		Long: `List the clusters at the hub's gateway: the agents whose owners have switched it on, with
the URL at which each cluster's API server answers. ACCESS says whether the hub's access
grants let you in; what you may do there is decided by the cluster's RBAC. --mine leaves out
those that do not let you in.`,
		Example: "  postern clusters\n  postern clusters --mine -o json\n  postern kubeconfig office --use",
		Args:    command.Exact(),
	}
	mine := cmd.Flags().Bool("mine", false, "only those that you may reach")
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			agents, err := c.Agents(ctx, org)
			if err != nil {
				return err
			}
			all := clustersOf(agents, c.BaseURL)
			known := len(all)
			if *mine {
				all = slices.DeleteFunc(all, func(one cluster) bool { return one.Access != api.VerdictAllowed })
			}
			if len(all) == 0 && *output == formatTable {
				fmt.Fprintln(w.Stderr, noClusters(org, known))
			}
			return output.print(w.Stdout, all, func(r *rows) {
				r.row("CLUSTER", "STATE", "ACCESS", "REPLICAS", "URL", "LABELS")
				for _, one := range all {
					r.row(one.Name, one.State, accessCell(one.Access), strconv.Itoa(one.Replicas), one.URL, access.FormatLabels(one.Labels))
				}
			})
		})
	}
	return cmd
}

// noClusters says why none is listed, though the hub may know some.
func noClusters(org string, known int) string {
	if known == 0 {
		return "no agent of organization " + org + " is a cluster at the gateway: its owner starts it with --gateway"
	}
	return fmt.Sprintf("no access grant lets you into any of the %d clusters of organization %s: postern access grant --target gateway", known, org)
}

// accessCell says for people whether they are let in.
func accessCell(verdict string) string {
	switch verdict {
	case api.VerdictAllowed:
		return "yes"
	case "":
		return ""
	default:
		return "no"
	}
}

// clustersOf returns the agents that are clusters at the gateway of a hub.
func clustersOf(agents []api.Agent, hub string) []cluster {
	all := []cluster{}
	for _, a := range agents {
		if !slices.ContainsFunc(a.Replicas, func(r api.Replica) bool { return r.Gateway }) {
			continue
		}
		one := cluster{Name: a.ID, State: api.StateLost, Access: a.Gateway, URL: hub + "/" + a.Organization + ":" + a.ID, Labels: a.Labels}
		for _, r := range a.Replicas {
			switch {
			case !r.Gateway:
			case r.State == api.StateReady:
				one.State = api.StateReady
				one.Replicas++
			case one.State == api.StateLost:
				one.State = r.State
			}
		}
		all = append(all, one)
	}
	return all
}
