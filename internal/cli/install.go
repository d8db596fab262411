package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"postern.dev/postern/charts"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/install"
)

// maxValues bounds a file of values, in bytes.
const maxValues = 4 << 20

// newInstall returns "install".
func newInstall(w command.World) *cobra.Command {
	cmd := command.Group("install", "Print Kubernetes manifests of an agent, a hub or the operator",
		newInstallChart(w, "agent", charts.Agent, agentShortcuts(), `
  # Once, from the file that postern robot token create wrote:
  kubectl create secret generic robot-token --from-file=token=token.json
  postern install agent --connect-url tls://hub.example.org --organization default --agent-id plant \
    --token-secret robot-token --ca-file ca.crt | kubectl apply -f -

  # With a token of the cluster instead of a Secret, and what may be reached.
  postern install agent --connect-url tls://hub.example.org --organization default --agent-id plant \
    --workload-token --allow kubernetes --allow tcp:db.example.org:5432

  # Everything from a file of values, as for Helm.
  postern install agent -f values.yaml -n network`),
		newInstallChart(w, "hub", charts.Hub, hubShortcuts(), `
  postern install hub -n postern --create-namespace --tls-name hub.example.org --service-type LoadBalancer | kubectl apply -f -

  # With a certificate of a public CA and people who sign in.
  postern install hub -n postern --tls-name hub.example.org --tls-secret hub-tls \
    --set signIn.issuerURL=https://login.example.org --set signIn.clientID=postern`),
		newInstallChart(w, "operator", charts.Operator, operatorShortcuts(), `
  postern install operator -n postern-system --create-namespace --connect-url tls://hub.example.org \
    --organization acme --ca-file ca.crt | kubectl apply --server-side -f -

  # Also for Proxies of the group spaces.upbound.io.
  postern install operator -n postern-system --connect-url tls://hub.example.org --compat-upbound`),
	)
	cmd.Long = `Print the manifests of the Helm charts that this program carries, for clusters without
Helm. What is printed is what helm template prints, without the hooks.

No secret is among the values. Where one is needed, the values name a Secret, and the
notes on standard error have the command that makes it from a file.`
	return cmd
}

// shortcut is a flag for a value that most people need.
type shortcut struct {
	flag, short string
	path        string // in the chart's values
	usage       string
	on          bool // a switch
	number      bool
	many        bool // repeatable
	file        bool // the value is a file's content
}

func agentShortcuts() []shortcut {
	return []shortcut{
		{flag: "connect-url", path: "agent.connectUrl", usage: "`URL` of the hub: tls://HOST[:4222], or wss://HOST[:443]"},
		{flag: "organization", short: "a", path: "agent.organization", usage: "`ORG` to work for"},
		{flag: "agent-id", path: "agent.agentId", usage: "`ID` of the agent"},
		{flag: "token-secret", path: "agent.tokenSecret", usage: "`SECRET` with a robot token, under the key token"},
		{flag: "private-key-secret", path: "agent.privateKeySecret", usage: "`SECRET` with the agent's private key, under the key private-key"},
		{flag: "join-secret", path: "agent.joinSecret", usage: "`SECRET` with a join string, under the key join"},
		{flag: "workload-token", on: true, path: "agent.workloadToken.enabled", usage: "prove who the agent is with a token of its service account"},
		{flag: "ca-file", file: true, path: "agent.ca.pem", usage: "`FILE` with the hub's CA certificate, which is put into the manifests"},
		{flag: "ca-pin", path: "agent.ca.pin", usage: "`PIN`, the fingerprint of the hub's CA as the hub prints it (sha256:...)"},
		{flag: "allow", many: true, path: "agent.allow", usage: "`RULE` for what may be reached; without a rule the API server of the cluster"},
		{flag: "replicas", number: true, path: "replicas", usage: "`N` replicas run; without it 2"},
		{flag: "impersonation", on: true, path: "impersonation.enabled", usage: "switch the gateway on, with the rights that it needs"},
	}
}

func hubShortcuts() []shortcut {
	return []shortcut{
		{flag: "tls-name", many: true, path: "hub.names", usage: "`NAME` under which the hub is reached"},
		{flag: "tls-secret", path: "tls.secret", usage: "`SECRET` with a certificate of a public CA, of the type kubernetes.io/tls"},
		{flag: "service-type", path: "service.type", usage: "`TYPE` of the Service: ClusterIP, NodePort or LoadBalancer"},
		{flag: "storage-class", path: "persistence.storageClass", usage: "`CLASS` of storage for the hub's volume"},
		{flag: "size", path: "persistence.size", usage: "`SIZE` of the hub's volume"},
	}
}

func operatorShortcuts() []shortcut {
	return []shortcut{
		{flag: "connect-url", path: "hub.connectUrl", usage: "`URL` of the hub, for Proxies that do not name one: tls://HOST[:4222], or wss://HOST[:443]"},
		{flag: "organization", short: "a", path: "hub.organization", usage: "`ORG` of the hub, for Proxies that do not name one; without it default"},
		{flag: "ca-file", file: true, path: "hub.ca.pem", usage: "`FILE` with the hub's CA certificate, which is put into the manifests"},
		{flag: "ca-pin", path: "hub.ca.pin", usage: "`PIN`, the fingerprint of the hub's CA as the hub prints it (sha256:...)"},
		{flag: "compat-upbound", on: true, path: "compat.upbound.enabled", usage: "serve Proxies of the group spaces.upbound.io too"},
	}
}

// installOptions are the flags of every chart.
type installOptions struct {
	release         install.Release
	files           []string
	set, setString  []string
	setFile         []string
	createNamespace bool
}

func (o *installOptions) bind(cmd *cobra.Command, chart string) {
	f := cmd.Flags()
	f.StringVar(&o.release.Name, "name", chart, "`NAME` of the release, part of the names of all that is made")
	f.StringVarP(&o.release.Namespace, "namespace", "n", "default", "`NAMESPACE` of all that is made")
	f.BoolVar(&o.createNamespace, "create-namespace", false, "print the namespace too, restricted to pods without privileges")
	f.StringArrayVarP(&o.files, "values", "f", nil, "`FILE` of values in YAML, - for standard input; repeatable, and the last wins")
	f.StringArrayVar(&o.set, "set", nil, "`KEY=VALUE` among the values of the chart, as for Helm; repeatable")
	f.StringArrayVar(&o.setString, "set-string", nil, "`KEY=VALUE`, of which the value is a text even if it looks like a number; repeatable")
	f.StringArrayVar(&o.setFile, "set-file", nil, "`KEY=FILE`, of which the file's content is the value; repeatable")
	f.BoolVar(&o.release.Hooks, "hooks", false, "print the charts' hooks too: the pod of helm test")
	_ = cmd.MarkFlagFilename("values", "yaml", "yml") // fails for unknown flags only
}

// newInstallChart returns "install agent" and its like.
func newInstallChart(w command.World, name, chart string, shortcuts []shortcut, example string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   name,
		Short: "Print the manifests of the chart " + chart,
		Long: `Print the manifests of the chart ` + chart + ` for kubectl apply. Standard error says what to
do next, and how to make the Secrets that are needed.

Each flag is a value of the chart, and wins over files of values; --set wins over flags.
docs/guide/install-kubernetes.md lists all values.`,
		Example: strings.TrimPrefix(example, "\n"),
		Args:    command.Exact(),
	}
	var o installOptions
	o.bind(cmd, chart)
	for _, s := range shortcuts {
		s.bind(cmd)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		values, err := o.values(w, cmd, shortcuts)
		if err != nil {
			return err
		}
		files, err := charts.Files(chart)
		if err != nil {
			return err
		}
		loaded, err := install.Load(files)
		if err != nil {
			return err
		}
		out, err := loaded.Render(o.release, values)
		if refusal, ok := errors.AsType[*install.RefusedError](err); ok {
			return &command.UsageError{Err: refusal}
		}
		if err != nil {
			return err
		}
		if o.createNamespace {
			out.Manifests = namespaceManifest(o.release.Namespace) + out.Manifests
		}
		if _, err := io.WriteString(w.Stdout, out.Manifests); err != nil {
			return wrote(err)
		}
		_, err = io.WriteString(w.Stderr, out.Notes)
		return wrote(err)
	}
	return cmd
}

// namespaceManifest returns a namespace that takes no pod with more rights than ours need.
func namespaceManifest(name string) string {
	return "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: " + name +
		"\n  labels:\n    pod-security.kubernetes.io/enforce: restricted\n"
}

func (s shortcut) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	switch {
	case s.on:
		f.Bool(s.flag, false, s.usage)
	case s.many:
		f.StringArray(s.flag, nil, s.usage+"; repeatable")
	default:
		f.StringP(s.flag, s.short, "", s.usage)
	}
	if s.file {
		_ = cmd.MarkFlagFilename(s.flag) // fails for unknown flags only
	}
}

// values puts together what files, shortcuts and --set say, in this order.
func (o *installOptions) values(w command.World, cmd *cobra.Command, shortcuts []shortcut) (install.Values, error) {
	var v install.Values
	for _, name := range o.files {
		text, err := readValues(w, name)
		if err != nil {
			return v, err
		}
		if err := v.AddFile(text); err != nil {
			return v, &command.UsageError{Err: fmt.Errorf("--values %s: %w", name, err)}
		}
	}
	for _, s := range shortcuts {
		if err := s.put(w, cmd, &v); err != nil {
			return v, err
		}
	}
	for _, one := range []struct {
		flag  string
		given []string
		set   func(string) error
	}{{"set", o.set, v.Set}, {"set-string", o.setString, v.SetString}} {
		for _, text := range one.given {
			if err := one.set(text); err != nil {
				return v, &command.UsageError{Err: fmt.Errorf("--%s %w", one.flag, err)}
			}
		}
	}
	for _, text := range o.setFile {
		key, name, ok := strings.Cut(text, "=")
		if !ok || key == "" {
			return v, &command.UsageError{Err: fmt.Errorf("--set-file %q: want KEY=FILE", text)}
		}
		content, err := readValues(w, name)
		if err != nil {
			return v, err
		}
		v.Put(string(content), strings.Split(key, ".")...)
	}
	return v, nil
}

// put sets the value of a shortcut, if its flag was given.
func (s shortcut) put(w command.World, cmd *cobra.Command, v *install.Values) error {
	if !cmd.Flags().Changed(s.flag) {
		return nil
	}
	path := strings.Split(s.path, ".")
	if s.many {
		given, err := cmd.Flags().GetStringArray(s.flag)
		if err != nil {
			return err
		}
		list := make([]any, len(given))
		for i, text := range given {
			list[i] = text
		}
		v.Put(list, path...)
		return nil
	}
	text := cmd.Flags().Lookup(s.flag).Value.String()
	switch {
	case s.on:
		v.Put(text == "true", path...)
	case s.number:
		return usageError(s.flag, v.Set(s.path+"="+text))
	case s.file:
		content, err := readValues(w, text)
		if err != nil {
			return err
		}
		v.Put(string(content), path...)
	default:
		v.Put(text, path...)
	}
	return nil
}

func usageError(flag string, err error) error {
	if err == nil {
		return nil
	}
	return &command.UsageError{Err: fmt.Errorf("--%s: %w", flag, err)}
}

// readValues reads a file that somebody names, or standard input for "-".
func readValues(w command.World, name string) ([]byte, error) {
	from := w.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, &command.UsageError{Err: err}
		}
		defer f.Close()
		from = f
	}
	var b bytes.Buffer
	n, err := b.ReadFrom(io.LimitReader(from, maxValues+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if n > maxValues {
		return nil, &command.UsageError{Err: fmt.Errorf("%s is longer than %d bytes", name, maxValues)}
	}
	return b.Bytes(), nil
}
