package policy

import (
	"errors"
	"fmt"
)

// ErrGatewayRule is why no rule of an owner allows the gateway: it lends the rights of
// the agent's service account, which is to be decided for itself.
var ErrGatewayRule = errors.New("rules do not allow the gateway; switch it on with --gateway (in a file: gateway: true)")

// Settings is what an agent's owner says beside a policy file, as text.
type Settings struct {
	Allow []string // rules; holds for everybody
	Deny  []string // rules; holds for everybody
	File  bool     // there is a policy file, so that nothing is allowed by default

	// NoDefault tells that nothing is allowed by default.
	NoDefault bool

	// Gateway switches the agent's end of the gateway on, for those whom no rule
	// denies it. What it is asked for is judged by request.
	Gateway bool
}

// Assemble returns the policy of settings together with the entries of a file.
// When neither a setting nor a file says what is allowed, an agent in a pod (kube
// is not nil) allows its own API server, and any other nothing.
func Assemble(s Settings, file []Entry, kube *KubernetesAPI) (*Policy, error) {
	var entries []Entry
	add := func(texts []string, deny bool, origin string) error {
		for _, text := range texts {
			r, err := ParseRule(text)
			if err != nil {
				return fmt.Errorf("%s: %w", origin, err)
			}
			if !deny && r.IsGateway() {
				return fmt.Errorf("%s: %w", origin, ErrGatewayRule)
			}
			entries = append(entries, Entry{Rule: r, Deny: deny, Origin: origin})
		}
		return nil
	}
	if err := add(s.Allow, false, "--allow"); err != nil {
		return nil, err
	}
	if len(s.Allow) == 0 && !s.File && !s.NoDefault && kube != nil {
		entries = append(entries, Entry{Rule: Rule{kind: ruleKubernetes}, Origin: "default"})
	}
	if s.Gateway {
		entries = append(entries, Entry{Rule: Rule{kind: ruleGateway}, Origin: "--gateway"})
	}
	if err := add(s.Deny, true, "--deny"); err != nil {
		return nil, err
	}
	return NewOf(append(entries, file...), kube), nil
}
