package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/wire"
	"postern.dev/postern/internal/workload"
)

// maxTrustFile bounds a file with certificates or keys, in bytes.
const maxTrustFile = 48 << 10

// newTrust returns "trust" with what can be done to trusted issuers.
func newTrust(w command.World) *cobra.Command {
	cmd := command.Group("trust", "Trust issuers whose tokens enrol workloads",
		newTrustAdd(w), newTrustList(w), newTrustKeys(w), newTrustRemove(w))
	cmd.Long = `Trust issuers of tokens: a Kubernetes cluster, a cloud, a CI system, any issuer of OpenID
Connect. An agent or proxy that its platform gives such a token needs no other secret:
it starts with --workload-token-file.`
	return cmd
}

// trustOptions are the flags of "trust add".
type trustOptions struct {
	name      string
	audiences []string
	claims    []string
	agent     string
	proxy     string
	caFile    string
	jwksFile  string
}

func newTrustAdd(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add ISSUER",
		Short: "Trust an issuer's tokens for one agent or proxy",
		Long: `Trust the tokens of an issuer that are for the audience and meet all rules, to enrol the one
agent or proxy that is named. ISSUER is the URL as the tokens' iss tells it, to the letter.

A rule is CLAIM=VALUE; one for sub is needed. In a value, * stands for one or more
characters of a part between ':' and '/', but not at its beginning. A claim within
objects is named with dots: kubernetes.io.namespace. --agent and --proxy may hold one
claim in braces, as edge-{kubernetes.io.namespace}, for a trust that enrols many.

The hub asks the issuer for its keys, now and when they change. For one that it cannot
reach, such as the API server of a private cluster, give the keys with --jwks-file. Only
who administers the hub may name an issuer that is not on the public Internet.`,
		Example: `  # The agent in a private cluster, whose keys are got inside it.
  kubectl get --raw /openid/v1/jwks > keys.json
  postern trust add https://kubernetes.default.svc.cluster.local --jwks-file keys.json \
    --audience postern --claim sub=system:serviceaccount:postern:agent --agent cluster-7

  # Jobs of a repository's main branch, as a proxy.
  postern trust add https://token.actions.githubusercontent.com --audience postern \
    --claim sub=repo:acme/infra:ref:refs/heads/main --proxy ci`,
		Args: command.Exact("ISSUER"),
	}
	var o trustOptions
	f := cmd.Flags()
	f.StringVar(&o.name, "name", "", "`NAME` of the trust; without it that of the agent or proxy")
	f.StringArrayVar(&o.audiences, "audience", nil, "`AUDIENCE` that a token has to be for; repeatable, one of them suffices")
	f.StringArrayVar(&o.claims, "claim", nil, "`CLAIM=VALUE` that a token has to have; repeatable, all of them are needed")
	f.StringVar(&o.agent, "agent", "", "`ID` of the agent that is enrolled")
	f.StringVar(&o.proxy, "proxy", "", "`NAME` of the proxy that is enrolled")
	f.StringVar(&o.caFile, "issuer-ca-file", "", "`FILE` with the CA certificate of the issuer, where it is not a public one")
	f.StringVar(&o.jwksFile, "jwks-file", "", "`FILE` with the issuer's keys as a JWK set, - for standard input; the issuer is then not asked")
	_ = errors.Join(cmd.MarkFlagFilename("issuer-ca-file"), cmd.MarkFlagFilename("jwks-file")) // fail for unknown flags only
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		request, err := o.request(w, args[0])
		if err != nil {
			return &command.UsageError{Err: err}
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			made, err := c.CreateTrust(ctx, org, request)
			if api.IsExists(err) {
				return wire.AsFailure(err, wire.LegHub).WithHint("choose another with --name, or remove it with: postern trust remove %s -a %s", request.Name, org)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(w.Stderr, "trust %s: tokens of %s enrol %s %s of organization %s\n", made.Name, made.Issuer, made.Role, made.Identity, org)
			return nil
		})
	}
	return cmd
}

// request checks the flags, so that what can be said here is said before the hub is
// asked.
func (o *trustOptions) request(w command.World, issuer string) (api.CreateTrust, error) {
	r := api.CreateTrust{Name: o.name, Issuer: issuer, Audiences: o.audiences, Claims: o.claims}
	switch {
	case len(o.audiences) == 0:
		return r, errors.New("--audience is missing: a token for anybody would be good")
	case (o.agent == "") == (o.proxy == ""):
		return r, errors.New("say which party the tokens enrol: one of --agent ID and --proxy NAME")
	case o.agent != "":
		r.Role, r.Identity = "agent", o.agent
	default:
		r.Role, r.Identity = "proxy", o.proxy
	}
	if _, err := workload.ParseRules(o.claims); err != nil {
		return r, fmt.Errorf("--claim: %w", err)
	}
	name, err := workload.ParseName(r.Identity)
	if err != nil {
		return r, fmt.Errorf("--%s: %w", r.Role, err)
	}
	if r.Name == "" && !name.Fixed() {
		return r, errors.New("--name is missing: a trust for many has no name by itself")
	}
	if r.Name == "" {
		r.Name = r.Identity
	}
	if o.caFile != "" {
		if r.CA, err = readTrustFile(w, o.caFile); err != nil {
			return r, fmt.Errorf("--issuer-ca-file: %w", err)
		}
	}
	if o.jwksFile != "" {
		if r.Keys, err = readTrustFile(w, o.jwksFile); err != nil {
			return r, fmt.Errorf("--jwks-file: %w", err)
		}
	}
	return r, nil
}

func readTrustFile(w command.World, name string) (string, error) {
	in := w.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxTrustFile+1))
	switch {
	case err != nil:
		return "", err
	case len(b) > maxTrustFile:
		return "", fmt.Errorf("%s is longer than %d bytes", name, maxTrustFile)
	case len(strings.TrimSpace(string(b))) == 0:
		return "", fmt.Errorf("%s is empty", name)
	}
	return string(b), nil
}

func newTrustList(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the issuers that an organization trusts",
		Example: "  postern trust list -a acme\n  postern trust list -o yaml",
		Args:    command.Exact(),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			all, err := c.Trusts(ctx, org)
			if err != nil {
				return err
			}
			return output.print(w.Stdout, nonNil(all), func(r *rows) {
				r.row("NAME", "ENROLS", "ISSUER", "AUDIENCE", "CLAIMS", "KEYS", "CREATED")
				for _, t := range all {
					keys := "asked for"
					if t.Keys {
						keys = "given"
					}
					r.row(t.Name, t.Role+" "+t.Identity, t.Issuer, strings.Join(t.Audiences, ","), strings.Join(t.Claims, ","), keys, date(t.Created, ""))
				}
			})
		})
	}
	return cmd
}

func newTrustKeys(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set-keys NAME FILE",
		Short: "Replace the keys of an issuer that the hub does not ask",
		Long: `Replace the keys of a trust that was added with --jwks-file, by the JWK set in FILE, - for
standard input. When an issuer changes its keys, give both the old and the new first.
What has enrolled stays.`,
		Example: "  kubectl get --raw /openid/v1/jwks | postern trust set-keys cluster-7 -",
		Args:    command.Exact("NAME", "FILE"),
	}
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		keys, err := readTrustFile(w, args[1])
		if err != nil {
			return &command.UsageError{Err: err}
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			err := c.SetTrustKeys(ctx, org, args[0], keys)
			if err == nil {
				fmt.Fprintf(w.Stderr, "keys of trust %s replaced\n", args[0])
			}
			return err
		})
	}
	return cmd
}

func newTrustRemove(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "remove NAME",
		Aliases: []string{"rm", "delete"},
		Short:   "Trust an issuer no more",
		Long:    "Trust an issuer no more. What enrolled with its tokens by this trust is cut off within seconds.",
		Example: "  postern trust remove cluster-7 -a acme",
		Args:    command.Exact("NAME"),
	}
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			err := c.RemoveTrust(ctx, org, args[0])
			if err == nil {
				fmt.Fprintf(w.Stderr, "trust %s removed\n", args[0])
			}
			return err
		})
	}
	return cmd
}
