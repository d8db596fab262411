package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/kubeconfig"
	"postern.dev/postern/internal/wire"
)

func newKubectl(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kubectl CLUSTER -- ARGUMENT...",
		Short: "Run kubectl on a cluster through the gateway",
		Long: `Run kubectl on a cluster behind the hub's gateway, without touching your kubeconfig: it
gets one of its own, which is gone when it ends. Input, output, terminal, signals and
exit code are kubectl's. CLUSTER is an agent's ID, or ORG:CLUSTER.`,
		Example: `  postern kubectl office -- get nodes
  postern kubectl office -- exec -it deploy/web -- sh`,
		Args: func(cmd *cobra.Command, args []string) error {
			at := cmd.ArgsLenAtDash()
			if at < 0 && len(args) > 1 {
				return &command.UsageError{Err: fmt.Errorf("write -- before kubectl's arguments: postern kubectl %s -- %s", args[0], strings.Join(args[1:], " "))}
			}
			if at >= 0 {
				args = args[:at]
			}
			return command.Exact("CLUSTER")(cmd, args)
		},
	}
	settings := config.DefaultGatewayClient()
	set := config.Bind(&settings)
	command.Bind(cmd, set)
	contextFlag(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := set.Load(w.Env); err != nil {
			return err
		}
		where, err := parseCluster(args[0], &settings, set)
		if err != nil {
			return err
		}
		kubectl, err := exec.LookPath("kubectl")
		if err != nil {
			return wire.Fail(wire.LegClient, wire.CodeBadRequest, "kubectl is not in PATH").WithCause(err).
				WithHint("install it, see https://kubernetes.io/docs/tasks/tools/")
		}
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		user, err := kubeUser(cmd, w, &settings, self, true)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
		defer cancel()
		cluster, err := kubeCluster(ctx, w, &settings, where, false)
		if err != nil {
			return err
		}
		cancel()
		return runKubectl(w, kubectl, args[1:], kubeconfig.Entry{Name: "postern-" + strings.ReplaceAll(args[0], ":", "-"), Cluster: cluster, User: user, Use: true})
	}
	return cmd
}

// runKubectl runs kubectl with a kubeconfig of its own, and passes on its exit code.
func runKubectl(w command.World, kubectl string, args []string, e kubeconfig.Entry) (err error) {
	text, err := kubeconfig.Merge(nil, e)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "postern-kubectl-*") // mode 0700
	if err != nil {
		return fmt.Errorf("make kubeconfig: %w", err)
	}
	defer func() {
		if left := os.RemoveAll(dir); left != nil && err == nil {
			err = fmt.Errorf("remove kubeconfig: %w", left)
		}
	}()
	file := filepath.Join(dir, "config")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return fmt.Errorf("make kubeconfig: %w", err)
	}
	// Signals are kubectl's to answer; it decides how to end. Those of a terminal it
	// gets itself, too, and a second one does no harm.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	c := exec.Command(kubectl, args...) //nolint:noctx // see above
	c.Stdin, c.Stdout, c.Stderr = w.Stdin, w.Stdout, w.Stderr
	c.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "KUBECONFIG=") }), "KUBECONFIG="+file)
	if err := c.Start(); err != nil {
		return fmt.Errorf("run kubectl: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	for {
		select {
		case s := <-signals:
			_ = c.Process.Signal(s) // it may have ended meanwhile
		case err := <-ended:
			return kubectlEnd(err)
		}
	}
}

// kubectlEnd returns the error with the exit code that a shell would tell.
func kubectlEnd(err error) error {
	exited, ok := errors.AsType[*exec.ExitError](err)
	switch {
	case err == nil:
		return nil
	case !ok:
		return fmt.Errorf("run kubectl: %w", err)
	case exited.ExitCode() > 0:
		return &command.ExitError{Code: exited.ExitCode(), Err: fmt.Errorf("kubectl: %w", err)}
	}
	code := 1
	if status, ok := exited.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		code = 128 + int(status.Signal())
	}
	return &command.ExitError{Code: code, Err: fmt.Errorf("kubectl: %w", err)}
}
