package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/doctor"
	"postern.dev/postern/internal/uplink"
	"postern.dev/postern/internal/wire"
)

func newDoctor(w command.World) *cobra.Command {
	settings := config.DefaultDoctor()
	set := config.Bind(&settings)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out which leg is broken, and what to do about it",
		Long: `Walk the legs from here to a target, one after another: DNS, HTTP proxy, TCP, TLS and
the hub's identity, clock, credentials, bus, relay, agent, policy, target. Each passes,
fails with advice, or is skipped with the reason. Run it where the trouble is, with the
settings of the agent or proxy that has it: a token, a private key, the state directory of
an agent that has joined, or a workload token. A person who is signed in needs none.

With what proves to be the agent itself, a key, the directory or its workload token, the walk
ends at the relay: an agent reaches nothing. From there on walk as a client of it would.

The exit code is 5 if a leg is broken.`,
		Example: `  postern doctor --connect-url tls://hub.example.org --organization default \
    --token-file token.json --ca-file ca.crt

  # Where an agent runs that has a key of its own.
  postern doctor --connect-url tls://hub.example.org --organization default --agent-id office \
    --private-key-file office.key --ca-file ca.crt

  # All the way to a database.
  postern doctor --connect-url tls://hub.example.org --organization default --token-file token.json \
    --ca-file ca.crt --agent-id office --target tcp:db.example.org:5432`,
		Args: command.Exact(),
	}
	output := bindFormat(cmd)
	command.Bind(cmd, set)
	contextFlag(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := set.Load(w.Env); err != nil {
			return err
		}
		d, err := uplink.New(uplink.Config{
			ConnectURL: settings.ConnectURL, CAFile: settings.CAFile, CAPin: settings.CAPin,
			ProxyURL: settings.ProxyURL, ProxyCAFile: settings.ProxyCAFile, Getenv: w.Getenv,
		})
		if err != nil {
			return err
		}
		defer d.CloseIdle()
		hub := &patient{uplink: d, settings: settings}
		if settings.SignedIn() {
			if hub.secret, err = signedIn(w, settings.Context); err != nil {
				return err
			}
		}
		o := doctor.Options{Road: d, Hub: hub, Agent: settings.AgentID, Now: time.Now}
		if settings.Target != "" {
			target, err := wire.ParseTarget(settings.Target)
			if err != nil {
				return &command.UsageError{Err: err}
			}
			o.Target = &target
		}
		var line func(doctor.Result)
		if *output == formatTable {
			line = func(r doctor.Result) { r.WriteLine(w.Stdout) } // as it comes: a leg may take a while
		}
		steps, done := doctor.Steps(o)
		report := doctor.Walk(cmd.Context(), steps, line)
		done()
		if err := printReport(w.Stdout, *output, report); err != nil {
			return err
		}
		if leg := report.Failed(); leg != "" {
			return &command.CheckError{Text: fmt.Sprintf("the leg %q is broken", leg)}
		}
		return nil
	}
	return cmd
}

// printReport prints a report in a format that is printed at the end.
func printReport(w io.Writer, f format, r doctor.Report) error {
	switch f {
	case formatJSON:
		return r.WriteJSON(w)
	case formatYAML:
		return f.print(w, r, nil)
	default:
		return nil
	}
}
