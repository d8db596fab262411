package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/proxy"
)

// stdio is the address that means standard input and output.
const stdio = "-"

// forwardDrain is how long connections may go on after the forward is told to
// stop: somebody at a shell waits for it.
const forwardDrain = 2 * time.Second

func newForward(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "forward AGENT TARGET [-- COMMAND ARGUMENT...]",
		Short: "Forward a local port to a target behind an agent",
		Long: `Forward a local address to a target behind an agent: tcp:HOST:PORT, as the agent
resolves it, or kubernetes for the API server of the agent's own cluster.

With a COMMAND, the forward lives as long as the command runs, and ends with its exit
code. In the command's arguments {address}, {host} and {port} stand for where the
forward listens; --listen may be left out then. With --listen - the command carries a single
connection over standard input and output, as ssh's ProxyCommand wants it.`,
		Example: `  postern forward office tcp:db.example.org:5432 --listen 127.0.0.1:5432

  postern forward office tcp:db.example.org:5432 -- psql -h {host} -p {port} -U app

  ssh -o ProxyCommand='postern forward office tcp:%h:%p --listen -' build.example.org`,
		Args: func(cmd *cobra.Command, args []string) error {
			if at := cmd.ArgsLenAtDash(); at >= 0 {
				if at == len(args) {
					return &command.UsageError{Err: errors.New("-- is not followed by a command")}
				}
				args = args[:at]
			}
			return command.Exact("AGENT", "TARGET")(cmd, args)
		},
	}
	settings := config.DefaultForward()
	set := config.Bind(&settings)
	command.Bind(cmd, set)
	contextFlag(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := set.Load(w.Env); err != nil {
			return err
		}
		if settings.Listen == "" {
			if len(args) == 2 {
				return &command.UsageError{Err: errors.New("say where to listen: --listen 127.0.0.1:PORT")}
			}
			settings.Listen = "127.0.0.1:0"
		}
		listen := settings.Listen
		if listen == stdio {
			listen = "127.0.0.1:0"
		}
		spec, err := config.ParseForward(listen + "=" + args[0] + "/" + args[1])
		if err != nil {
			return &command.UsageError{Err: err}
		}
		log, err := forwardLog(w, settings.Log)
		if err != nil {
			return err
		}
		var secret enroll.Secret
		if settings.SignedIn() {
			if secret, err = signedIn(w, settings.Context); err != nil {
				return err
			}
		}
		addr := make(chan net.Addr, 1)
		role := proxy.New(settings.Proxy(spec, config.ReplicaName(w.Env), forwardDrain), proxy.Options{
			Version: command.Version(), Getenv: w.Getenv, Secret: secret, Log: log,
			Listening: func(all []net.Addr) { addr <- all[0] },
		})

		// What uses the forward and the forward itself end each other.
		ctx, cancel := context.WithCancel(cmd.Context())
		defer cancel()
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return role.Run(ctx) })
		g.Go(func() error {
			var at net.Addr
			select {
			case at = <-addr:
			case <-ctx.Done():
				return nil
			}
			switch {
			case len(args) > 2:
				defer cancel()
				return runThrough(ctx, w, at, args[2:])
			case settings.Listen == stdio:
				defer cancel()
				return carryStdio(ctx, w, at)
			default:
				fmt.Fprintf(w.Stdout, "%s leads to %s through %s\n", at, spec.Target, spec.Agent)
				return nil
			}
		})
		return g.Wait()
	}
	return cmd
}

// runThrough runs a command that uses the forward, and passes on its exit code.
func runThrough(ctx context.Context, w command.World, at net.Addr, argv []string) error {
	host, port, err := net.SplitHostPort(at.String())
	if err != nil {
		return fmt.Errorf("address of the forward: %w", err)
	}
	fill := strings.NewReplacer("{address}", at.String(), "{host}", host, "{port}", port)
	args := make([]string, len(argv))
	for i, a := range argv {
		args[i] = fill.Replace(a)
	}
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = w.Stdin, w.Stdout, w.Stderr
	err = c.Run()
	if exited, ok := errors.AsType[*exec.ExitError](err); ok && exited.ExitCode() > 0 {
		return &command.ExitError{Code: exited.ExitCode(), Err: fmt.Errorf("%s: %w", args[0], err)}
	}
	if err != nil {
		return fmt.Errorf("run command: %w", err)
	}
	return nil
}

// carryStdio connects to the forward and carries standard input and output.
func carryStdio(ctx context.Context, w command.World, at net.Addr) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", at.String())
	if err != nil {
		return fmt.Errorf("connect to the forward: %w", err)
	}
	conn, ok := c.(*net.TCPConn)
	if !ok {
		return errors.New("connect to the forward: not a TCP connection")
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	// Not waited for: nothing ends a read of standard input but its writer, and
	// the process ends when the other direction has.
	go func() {
		if _, err := io.Copy(conn, w.Stdin); err == nil {
			_ = conn.CloseWrite()
		}
	}()
	if _, err := io.Copy(w.Stdout, conn); err != nil && ctx.Err() == nil {
		return fmt.Errorf("the connection was cut, and the lines above say why: %w", err)
	}
	return nil
}
