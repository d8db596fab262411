package policy

import "fmt"

// Settings is what an agent's owner says beside a policy file, as text.
type Settings struct {
	Allow []string // rules; holds for everybody
	Deny  []string // rules; holds for everybody
	File  bool     // there is a policy file, so that nothing is allowed by default
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
			entries = append(entries, Entry{Rule: r, Deny: deny, Origin: origin})
		}
		return nil
	}
	if err := add(s.Allow, false, "--allow"); err != nil {
		return nil, err
	}
	if len(s.Allow) == 0 && !s.File && kube != nil {
		entries = append(entries, Entry{Rule: Rule{kind: ruleKubernetes}, Origin: "default"})
	}
	if err := add(s.Deny, true, "--deny"); err != nil {
		return nil, err
	}
	return NewOf(append(entries, file...), kube), nil
}
