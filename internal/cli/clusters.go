package cli

import (
	"context"
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
	URL      string            `json:"url"`
	Replicas int               `json:"replicas"` // that are ready
	Labels   map[string]string `json:"labels,omitempty"`
}

func newClusters(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "clusters",
		Short: "List the clusters at the gateway",
		Long: `List the clusters at the hub's gateway: the agents whose owners have switched it on, with
the URL at which each cluster's API server answers. Whether it answers you is decided by
the hub's access grants and by RBAC there.`,
		Example: "  postern clusters\n  postern kubeconfig office --use",
		Args:    command.Exact(),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			agents, err := c.Agents(ctx, org)
			if err != nil {
				return err
			}
			all := clustersOf(agents, c.BaseURL)
			return output.print(w.Stdout, all, func(r *rows) {
				r.row("CLUSTER", "STATE", "REPLICAS", "URL", "LABELS")
				for _, one := range all {
					r.row(one.Name, one.State, strconv.Itoa(one.Replicas), one.URL, access.FormatLabels(one.Labels))
				}
			})
		})
	}
	return cmd
}

// clustersOf returns the agents that are clusters at the gateway of a hub.
func clustersOf(agents []api.Agent, hub string) []cluster {
	all := []cluster{}
	for _, a := range agents {
		if !slices.ContainsFunc(a.Replicas, func(r api.Replica) bool { return r.Gateway }) {
			continue
		}
		one := cluster{Name: a.ID, State: api.StateLost, URL: hub + "/" + a.Organization + ":" + a.ID, Labels: a.Labels}
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
