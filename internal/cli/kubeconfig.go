package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/kubeconfig"
	"postern.dev/postern/internal/uplink"
	"postern.dev/postern/internal/wire"
)

// kubeFlags are the flags of "kubeconfig" beside its settings.
type kubeFlags struct {
	output  string
	exec    bool
	context string
	use     bool
	remove  bool
	force   bool
}

func newKubeconfig(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kubeconfig CLUSTER",
		Short: "Let kubectl reach a cluster through the gateway",
		Long: `Put a cluster behind the hub's gateway into your kubeconfig: the first existing file of
KUBECONFIG, or else ~/.kube/config. CLUSTER is an agent's ID, or ORG:CLUSTER. Whatever
else is in the file stays as it is; a second call changes nothing. The context is called
postern-CLUSTER unless --context-name says otherwise, and becomes the current one with
--use, or if it is the only one.

Nothing in it is secret. If you have signed in, kubectl asks 'postern credential
kubernetes' for your session whenever it needs it, and the session is renewed as for any
other command. With --token-file the entry names the file, which kubectl reads again
while it runs; for the JSON file of a robot's token, kubectl asks postern too.`,
		Example: `  postern kubeconfig office --use
  kubectl get nodes

  # For a program elsewhere: a file of its own, with the path of the token there.
  postern kubeconfig office --output office.yaml --token-file /var/run/secrets/postern/token --exec=false

  postern kubeconfig office --remove`,
		Args: command.Exact("CLUSTER"),
	}
	settings := config.DefaultGatewayClient()
	set := config.Bind(&settings)
	var f kubeFlags
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "write a file with this cluster only, readable by its owner; - for standard output")
	cmd.Flags().BoolVar(&f.exec, "exec", false, "have clients ask 'postern credential kubernetes' for the token; =false to have them read --token-file themselves")
	cmd.Flags().StringVar(&f.context, "context-name", "", "name of the context, cluster and user in the file (default postern-CLUSTER)")
	cmd.Flags().BoolVar(&f.use, "use", false, "make it the current context")
	cmd.Flags().BoolVar(&f.remove, "remove", false, "take the cluster out of the file again")
	cmd.Flags().BoolVar(&f.force, "force", false, "replace what somebody else made under that name, or an existing file of --output")
	_ = cmd.MarkFlagFilename("output") // fails for unknown flags only
	command.Bind(cmd, set)
	contextFlag(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.remove {
			return removeCluster(cmd, w, args[0], f)
		}
		if err := set.Load(w.Env); err != nil {
			return err
		}
		where, err := parseCluster(args[0], &settings, set)
		if err != nil {
			return err
		}
		user, err := kubeUser(cmd, w, &settings, thisProgram(exec.LookPath), f.exec)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
		defer cancel()
		cluster, err := kubeCluster(ctx, w, &settings, where, true)
		if err != nil {
			return err
		}
		entry := kubeconfig.Entry{Name: f.name(args[0]), Cluster: cluster, User: user, Use: f.use, Replace: f.force}
		return saveCluster(ctx, w, entry, f)
	}
	return cmd
}

// name returns what the entry is called in the file.
func (f kubeFlags) name(cluster string) string {
	if f.context != "" {
		return f.context
	}
	return "postern-" + strings.ReplaceAll(cluster, ":", "-")
}

// parseCluster reads CLUSTER or ORG:CLUSTER and returns how it stands in the gateway's
// URLs. The organization is there if anything names it, so that the URL goes on to
// mean the same when its user gets into another one.
func parseCluster(text string, s *config.GatewayClient, set *config.Set) (string, error) {
	org, cluster, ok := strings.Cut(text, ":")
	if !ok {
		org, cluster = "", text
		if set.Field("organization").Origin().Source != config.SourceDefault {
			org = s.Organization
		}
	} else if err := identity.ValidateName("organization", org); err != nil {
		return "", &command.UsageError{Err: err}
	}
	if err := identity.ValidateName("cluster", cluster); err != nil {
		return "", &command.UsageError{Err: err}
	}
	if org == "" {
		return cluster, nil
	}
	return org + ":" + cluster, nil
}

// kubeCluster returns where the gateway serves a cluster, and how to verify it: now, or
// with lasting also while the hub changes its authority.
func kubeCluster(ctx context.Context, w command.World, s *config.GatewayClient, where string, lasting bool) (kubeconfig.Cluster, error) {
	c := kubeconfig.Cluster{Server: s.Gateway() + "/" + where, ProxyURL: passwordless(s.ProxyURL)}
	if c.ProxyURL != s.ProxyURL {
		fmt.Fprintf(w.Stderr, "the password of the proxy is not written down: give it to kubectl in HTTPS_PROXY\n")
	}
	if s.GatewayURL != "" {
		if s.GatewayCAFile == "" {
			return c, nil
		}
		ca, err := os.ReadFile(s.GatewayCAFile)
		if err == nil {
			_, err = identity.ParseCertificates(ca)
		}
		if err != nil {
			return c, wire.Fail(wire.LegClient, wire.CodeBadRequest, "the CA of the gateway: %s", err).WithCause(err)
		}
		c.CA = ca
		return c, nil
	}
	d, err := uplink.New(uplink.Config{
		ConnectURL: s.Hub, CAFile: s.CAFile, CAPin: s.CAPin, ProxyURL: s.ProxyURL, ProxyCAFile: s.ProxyCAFile, Getenv: w.Getenv,
	})
	if err != nil {
		return c, err
	}
	defer d.CloseIdle()
	server, err := d.Server(ctx)
	if err != nil {
		return c, err
	}
	if c.CA, c.TLSServerName = server.CA, server.Name; lasting {
		c.CA = withNext(ctx, &api.Client{BaseURL: d.BaseURL(), HTTP: d.HTTPClient()}, server.CA)
	}
	return c, nil
}

// passwordless returns the URL of a proxy without the secret in it; none if there is
// one, for half of the credentials is of no use.
func passwordless(proxy string) string {
	u, err := url.Parse(proxy)
	if err != nil || u.User != nil {
		return ""
	}
	return proxy
}

// kubeUser returns how clients get their token.
func kubeUser(cmd *cobra.Command, w command.World, s *config.GatewayClient, plugin string, wantExec bool) (kubeconfig.User, error) {
	chosen := cmd.Flags().Changed("exec")
	if s.TokenFile != "" && (!chosen || !wantExec) {
		file, err := filepath.Abs(s.TokenFile)
		if err != nil {
			return kubeconfig.User{}, fmt.Errorf("token file: %w", err)
		}
		bare, err := isBareToken(file)
		switch {
		case err == nil && bare || chosen && errors.Is(err, os.ErrNotExist): // it may be one of another machine
			return kubeconfig.User{TokenFile: file}, nil
		case err != nil:
			return kubeconfig.User{}, err
		case chosen:
			return kubeconfig.User{}, wire.Fail(wire.LegClient, wire.CodeBadRequest, "%s is JSON, which kubectl does not read as a token", file).
				WithHint("leave out --exec=false, or write the token alone into a file: jq -r .token %s", file)
		}
	}
	if chosen && !wantExec {
		return kubeconfig.User{}, &command.UsageError{Err: errors.New("--exec=false needs --token-file: a session is in no file that kubectl could read")}
	}
	args := []string{"credential", "kubernetes", "--hub", s.Hub}
	if s.GatewayURL != "" {
		args = append(args, "--gateway-url", s.GatewayURL)
	}
	switch {
	case s.SignedIn():
		args = append(args, "--context", s.Context)
	case s.TokenFile != "":
		file, err := filepath.Abs(s.TokenFile)
		if err != nil {
			return kubeconfig.User{}, fmt.Errorf("token file: %w", err)
		}
		args = append(args, "--token-file", file)
	}
	var env []kubeconfig.EnvVar
	if dir := w.Getenv("POSTERN_CONFIG_DIR"); dir != "" && s.SignedIn() {
		env = append(env, kubeconfig.EnvVar{Name: "POSTERN_CONFIG_DIR", Value: absoluteIfAny(dir)})
	}
	return kubeconfig.User{Exec: kubeconfig.NewExec(plugin, args, env...)}, nil
}

// isBareToken reports whether a token file holds the token alone, as kubectl wants it.
func isBareToken(file string) (bool, error) {
	token, _, err := enroll.ReadTokenFile(file)
	if err != nil {
		return false, err
	}
	text, err := os.ReadFile(file)
	return strings.TrimSpace(string(text)) == token.Token, err
}

// saveCluster writes an entry to where the flags say.
func saveCluster(ctx context.Context, w command.World, e kubeconfig.Entry, f kubeFlags) error {
	if f.output != "" {
		e.Use = true // it is the only one
		text, err := kubeconfig.Merge(nil, e)
		if err != nil {
			return err
		}
		if f.output == stdio {
			_, err := w.Stdout.Write(text)
			return wrote(err)
		}
		if regularFileExists(f.output) && !f.force {
			if old, err := os.ReadFile(f.output); err == nil && string(old) == string(text) {
				return nil
			}
			return wire.Fail(wire.LegClient, wire.CodeBadRequest, "%s exists", f.output).
				WithHint("choose another file, or replace it with --force; without --output the cluster is merged into your kubeconfig")
		}
		file, err := newSecretFile(f.output, f.force)
		if err != nil {
			return err
		}
		defer file.discard()
		return file.commitText(string(text))
	}
	path, err := kubeconfig.Current(w.Getenv)
	if err != nil {
		return err
	}
	if err := kubeconfig.Change(ctx, path, func(text []byte) ([]byte, error) { return kubeconfig.Merge(text, e) }); err != nil {
		return err
	}
	fmt.Fprintf(w.Stderr, "context %s in %s leads to %s\n", e.Name, path, e.Cluster.Server)
	if !e.Use {
		fmt.Fprintf(w.Stderr, "use it with: kubectl --context %s get namespaces\n", e.Name)
	}
	return nil
}

// removeCluster takes a cluster out of the kubeconfig files.
func removeCluster(cmd *cobra.Command, w command.World, cluster string, f kubeFlags) error {
	files := kubeconfig.Files(w.Getenv)
	switch f.output {
	case "":
	case stdio:
		return &command.UsageError{Err: errors.New("--remove needs a file")}
	default:
		files = []string{f.output}
	}
	name, removed := f.name(cluster), false
	for _, path := range files {
		if !regularFileExists(path) {
			continue
		}
		found := false
		err := kubeconfig.Change(cmd.Context(), path, func(text []byte) (without []byte, err error) {
			without, found, err = kubeconfig.Remove(text, name)
			return without, err
		})
		if err != nil {
			return err
		}
		if found {
			removed = true
			fmt.Fprintf(w.Stderr, "context %s removed from %s\n", name, path)
		}
	}
	if !removed {
		fmt.Fprintf(w.Stderr, "no kubeconfig has a context %s of postern's\n", name)
	}
	return nil
}
