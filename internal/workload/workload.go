// Package workload says which tokens of a trusted issuer are good, and for which
// identity: rules on what a token claims, and the name that its bearer may take. It
// is pure; that a token is its issuer's, who verifies tokens knows.
package workload

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"postern.dev/postern/internal/identity"
)

// Bounds of rules and names.
const (
	maxRules   = 16
	maxClaim   = 256  // bytes of a claim's name
	maxPattern = 1024 // bytes
	maxStars   = 8
	maxDepth   = 8 // of objects within objects
)

// Rule wants a claim to be like a pattern.
type Rule struct {
	claim   string
	pattern string
	like    *regexp.Regexp
}

// ParseRule reads CLAIM=PATTERN. A claim within objects is named with dots between,
// as kubernetes.io.namespace. In a pattern, * stands for one or more characters of
// one part, which ':' and '/' separate; a pattern does not begin with it, so that no
// rule lets everything pass.
func ParseRule(s string) (Rule, error) {
	claim, pattern, ok := strings.Cut(s, "=")
	switch {
	case !ok || claim == "" || pattern == "":
		return Rule{}, fmt.Errorf("rule %.200q: want CLAIM=VALUE, for instance sub=system:serviceaccount:postern:agent", s)
	case len(claim) > maxClaim || len(pattern) > maxPattern:
		return Rule{}, fmt.Errorf("rule %.60q… is too long: at most %d bytes before and %d behind the equals sign", s, maxClaim, maxPattern)
	case strings.HasPrefix(pattern, "*"):
		return Rule{}, fmt.Errorf("rule %.200q begins its value with *, which would let anybody of the issuer pass; write out how it begins", s)
	case strings.Contains(pattern, "**") || strings.Count(pattern, "*") > maxStars:
		return Rule{}, fmt.Errorf("rule %.200q: want at most %d of *, each apart; one * never passes a ':' or '/'", s, maxStars)
	}
	expression := strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, `[^:/]+`)
	like, err := regexp.Compile(`\A` + expression + `\z`)
	if err != nil {
		return Rule{}, fmt.Errorf("rule %.200q cannot be used: %w", s, err)
	}
	return Rule{claim: claim, pattern: pattern, like: like}, nil
}

// ParseRules reads rules, of which one has to be for the subject.
func ParseRules(texts []string) ([]Rule, error) {
	if len(texts) > maxRules {
		return nil, fmt.Errorf("%d rules; at most %d are possible", len(texts), maxRules)
	}
	rules := make([]Rule, 0, len(texts))
	for _, text := range texts {
		r, err := ParseRule(text)
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	if !slices.ContainsFunc(rules, func(r Rule) bool { return r.claim == "sub" }) {
		return nil, errors.New("no rule says whose tokens are good: give one for sub, for instance sub=system:serviceaccount:postern:agent")
	}
	return rules, nil
}

// String returns the rule as ParseRule reads it.
func (r Rule) String() string { return r.claim + "=" + r.pattern }

// Claim returns the name of the claim that the rule is about.
func (r Rule) Claim() string { return r.claim }

// Match reports whether claims are as the rule wants them: the claim is a text, a
// number or a truth value like the pattern, or a list with one.
func (r Rule) Match(claims map[string]any) bool {
	value := find(claims, r.claim, 0)
	if several, ok := value.([]any); ok {
		return slices.ContainsFunc(several, r.matches)
	}
	return r.matches(value)
}

func (r Rule) matches(value any) bool {
	text, ok := textOf(value)
	return ok && r.like.MatchString(text)
}

// textOf returns a claim's value as text, if it is a single one.
func textOf(value any) (string, bool) {
	switch value := value.(type) {
	case string:
		return value, true
	case json.Number:
		return value.String(), true
	case bool:
		return fmt.Sprint(value), true
	}
	return "", false
}

// find returns a claim: the member of that name, or one within objects, since names
// may hold dots themselves.
func find(claims map[string]any, name string, depth int) any {
	if value, ok := claims[name]; ok {
		return value
	}
	if depth == maxDepth {
		return nil
	}
	for i := range len(name) {
		if name[i] != '.' {
			continue
		}
		if inner, ok := claims[name[:i]].(map[string]any); ok {
			if value := find(inner, name[i+1:], depth+1); value != nil {
				return value
			}
		}
	}
	return nil
}

// Name is the name that a token's bearer may take: a fixed one, or one that holds a
// claim.
type Name struct {
	before, claim, after string
}

// ParseName reads a name as ValidateName wants it, or one with a claim's name in
// braces, as edge-{kubernetes.io.namespace}.
func ParseName(s string) (Name, error) {
	before, rest, ok := strings.Cut(s, "{")
	if !ok {
		return Name{before: s}, identity.ValidateName("name", s)
	}
	claim, after, ok := strings.Cut(rest, "}")
	if !ok || claim == "" || len(claim) > maxClaim || strings.ContainsAny(claim+after, "{}") {
		return Name{}, fmt.Errorf("name %.200q: want a name, or one with one claim in braces, as edge-{kubernetes.io.namespace}", s)
	}
	// What a claim adds has to leave a name.
	if err := identity.ValidateName("name", before+"x"+after); err != nil {
		return Name{}, err
	}
	return Name{before: before, claim: claim, after: after}, nil
}

// Fixed reports whether the name holds no claim.
func (n Name) Fixed() bool { return n.claim == "" }

// String returns the name as ParseName reads it.
func (n Name) String() string {
	if n.Fixed() {
		return n.before
	}
	return n.before + "{" + n.claim + "}" + n.after
}

// Of returns the name for some claims, or an error that says why there is none. A
// claim that is no name by itself gives none: it is not altered to fit.
func (n Name) Of(claims map[string]any) (string, error) {
	if n.Fixed() {
		return n.before, nil
	}
	text, ok := textOf(find(claims, n.claim, 0))
	if !ok {
		return "", fmt.Errorf("the token has no claim %s that is a text", n.claim)
	}
	if err := identity.ValidateName("claim "+n.claim, text); err != nil {
		return "", err
	}
	name := n.before + text + n.after
	return name, identity.ValidateName("name", name)
}
