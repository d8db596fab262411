package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
)

func newDev(w command.World) *cobra.Command {
	settings := config.DefaultDev()
	set := config.Bind(&settings)
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run everything in one process, and print what to try",
		Long: `Run a hub, an agent, a proxy and a few demo services in one process, with everything
in a temporary directory, and print three commands that reach those services through
the tunnel. Ctrl-C ends it and removes everything.`,
		Example: "  postern dev",
		Args:    command.Exact(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if err := set.Load(w.Env); err != nil {
				return err
			}
			log, err := w.Logger(settings.Log)
			if err != nil {
				return err
			}
			dir, err := os.MkdirTemp("", "postern-dev-")
			if err != nil {
				return fmt.Errorf("make temporary directory: %w", err)
			}
			defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
			d := &dev{world: w, settings: settings, dir: dir, log: log}
			return d.run(cmd.Context())
		},
	}
	command.Bind(cmd, set)
	return cmd
}

// The names of the demo.
const (
	devAgent = "demo"
	devRobot = "demo"
	// devHost is how clients of the proxy call what the agent calls localhost.
	devHost = "localhost." + devAgent + "." + config.DefaultSuffix
)

// invitation is what a person can try.
type invitation struct {
	program    string // how to call this program
	dir        string
	proxy      string // HOST:PORT
	webPort    string
	database   string // target
	kubeconfig string
	client     string // settings for commands
	env        string // the same for a shell
}

// String returns the text to print. The commands stand alone on their lines, to
// be copied.
func (i invitation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, `A hub, an agent, a proxy and a private network of three services run in this process;
their files are in %s. Try in another shell:

  A web page, by HTTP through the proxy:

    curl -x http://%s http://%s:%s/

  An API server like that of Kubernetes, by a kubeconfig with a proxy-url:

    kubectl --kubeconfig %s get namespaces

  A database like PostgreSQL, through a port forward of its own:

    %s forward --config %s %s %s -- psql -X -h {host} -p {port} -U demo -c 'select 1'

`, i.dir, i.proxy, devHost, i.webPort, quote(i.kubeconfig), quote(i.program), quote(i.client), devAgent, i.database)
	fmt.Fprintf(&b, "For other commands, such as 'postern status': source %s\nCtrl-C ends this and removes everything.\n", quote(i.env))
	return b.String()
}

// quote returns a word as a shell reads it.
func quote(s string) string {
	plain := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:=@%", r))
	}
	if s != "" && !strings.ContainsFunc(s, plain) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// thisProgram returns how to call this program from another shell: by its name if
// the shell would find it, or else by its path.
func thisProgram(lookPath func(string) (string, error)) string {
	self, err := os.Executable()
	if err != nil {
		return "postern"
	}
	if found, err := lookPath("postern"); err == nil {
		a, errA := os.Stat(self)
		b, errB := os.Stat(found)
		if errA == nil && errB == nil && os.SameFile(a, b) {
			return "postern"
		}
	}
	return self
}

// demoKubeconfig returns a kubeconfig for the demo's API server through the proxy.
func demoKubeconfig(server, proxy, caFile string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: postern-dev
clusters:
  - name: postern-dev
    cluster:
      server: %s
      proxy-url: %s
      certificate-authority: %s
contexts:
  - name: postern-dev
    context:
      cluster: postern-dev
      user: nobody
users:
  - name: nobody
    user:
      token: the-demo-asks-for-none
`, yamlText(server), yamlText(proxy), yamlText(caFile))
}

// yamlText returns a text in the quotes of YAML.
func yamlText(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// write makes a file in the directory and returns its path.
func (d *dev) write(name, text string) (string, error) {
	path := filepath.Join(d.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("prepare the demo: %w", err)
	}
	return path, nil
}
