package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/wire"
)

// The verdicts of an explanation.
const (
	verdictAllowed   = "allowed"
	verdictRefused   = "refused"
	verdictUndecided = "undecided" // the address decides
)

// explanation is what a policy says of a target.
type explanation struct {
	Target  string `json:"target"`
	Address string `json:"address,omitempty"`
	From    string `json:"from,omitempty"`
	Verdict string `json:"verdict"`
	Rule    string `json:"rule,omitempty"`   // the one that decides
	Origin  string `json:"origin,omitempty"` // where it stands
	Reason  string `json:"reason,omitempty"` // why it is not allowed
	Missing string `json:"missing,omitempty"`
	Rules   int    `json:"rules"`
	Version string `json:"version"`
}

func newPolicy(w command.World) *cobra.Command {
	return command.Group("policy", "Check what an agent's rules allow, without an agent", newPolicyExplain(w))
}

func newPolicyExplain(w command.World) *cobra.Command {
	settings := config.Policy{}
	set := config.Bind(&settings)
	cmd := &cobra.Command{
		Use:   "explain TARGET",
		Short: "Say whether rules allow a target, and which rule decides",
		Long: `Say whether the rules of an agent allow a target, and which rule in which line decides.
It takes the agent's flags about rules, and asks nobody: no hub, no agent, no resolver.

An agent checks the name first, and then every address that its resolver gives; give
such an address with --address. Rules that hold for some only are looked at for whom
--from names: what you give of user, groups, robot and proxy together is one asker.

The exit code is 0 if the target is allowed, and 3 if it is refused or if that depends
on its address.`,
		Example: `  postern policy explain --policy-file policy.yaml tcp:db.example.org:5432
  postern policy explain --policy-file policy.yaml --from proxy:ci --address 10.0.9.7 tcp:db.example.org:5432
  postern policy explain --policy-file policy.yaml --from user:ann@example.org --from group:dba tcp:db.example.org:5432
  postern policy explain --allow 'tcp:*.example.org:443' --deny tcp:secret.example.org:443 tcp:secret.example.org:443`,
		Args: command.Exact("TARGET"),
	}
	command.Bind(cmd, set)
	from := cmd.Flags().StringArray("from", nil, "who asks: user:NAME, robot:NAME, proxy:NAME, or a group of the user, group:NAME; repeatable; "+
		"without it somebody whom no rule names")
	address := cmd.Flags().String("address", "", "an IP address that TARGET resolves to at the agent")
	output := bindFormat(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if err := set.Load(w.Env); err != nil {
			return err
		}
		e, err := explain(w, settings, args[0], *from, *address)
		if err != nil {
			return &command.UsageError{Err: err}
		}
		if err := output.print(w.Stdout, e, e.table); err != nil {
			return err
		}
		if e.Verdict != verdictAllowed {
			return &command.ExitError{Code: command.ExitDenied, Err: errors.New(e.Verdict)}
		}
		return nil
	}
	return cmd
}

// explain judges a target. An error means that the input cannot be used.
func explain(w command.World, s config.Policy, target string, from []string, address string) (explanation, error) {
	t, err := wire.ParseTarget(target)
	if err != nil {
		return explanation{}, err
	}
	p, err := readPolicy(w, s)
	if err != nil {
		return explanation{}, err
	}
	who, err := policy.ParseAsker(from...)
	if err != nil {
		return explanation{}, err
	}
	e := explanation{Target: t.String(), From: strings.Join(from, ", "), Rules: len(p.Entries()), Version: p.Version()}
	p = p.For(who)
	d := p.Check(t)
	if d.Allowed && address != "" {
		ip, err := netip.ParseAddr(address)
		if err != nil {
			return explanation{}, fmt.Errorf("--address %q is not an IP address", address)
		}
		e.Address = ip.String()
		port := t.Port
		if d.Kubernetes {
			port = p.Kubernetes().Port
		}
		d = p.CheckAddr(t, netip.AddrPortFrom(ip, port))
	}
	e.Rule, e.Origin, e.Reason, e.Missing = d.Rule, d.Origin, d.Reason, d.Missing
	switch {
	case !d.Allowed:
		e.Verdict = verdictRefused
	case d.NeedsAddress:
		e.Verdict = verdictUndecided
		e.Reason = "no rule allows the name, and this one some addresses: give one with --address"
	default:
		e.Verdict = verdictAllowed
	}
	return e, nil
}

// readPolicy puts together the policy that an agent would.
func readPolicy(w command.World, s config.Policy) (*policy.Policy, error) {
	kube, err := policy.KubernetesFromEnv(w.Getenv)
	if err != nil {
		return nil, err
	}
	settings := policy.Settings{Allow: s.Allow, Deny: s.Deny, File: s.PolicyFile != "", Gateway: s.Gateway}
	if kube == nil { // outside of a pod: as in one, wherever its API server is
		kube = &policy.KubernetesAPI{Host: "kubernetes.default.svc", Port: 443}
	}
	var entries []policy.Entry
	if settings.File {
		if entries, err = policy.ReadFile(s.PolicyFile); err != nil {
			return nil, err
		}
	}
	return policy.Assemble(settings, entries, kube)
}

func (e explanation) table(r *rows) {
	r.row(e.Verdict, e.Target)
	if e.Address != "" {
		r.row("address", e.Address)
	}
	if e.From != "" {
		r.row("from", e.From)
	}
	if e.Rule != "" {
		r.row("rule", e.Rule, "("+e.Origin+")")
	}
	if e.Reason != "" {
		r.row("reason", e.Reason)
	}
	if e.Missing != "" {
		r.row("would help", e.Missing)
	}
	r.row("policy", fmt.Sprintf("%s, version %s", count(e.Rules, "rule"), e.Version))
}

// count returns "1 rule", "2 rules".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
