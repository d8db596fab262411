// Package controlplane names control planes and what runs in them: the subjects of
// identity tokens, and the patterns that say for which control planes somebody may
// speak. It is pure.
//
// Relying parties (a cloud's trust policy, an API server's RBAC) compare subjects as
// text, often with wildcards. So no part of a name can hold what separates parts.
package controlplane

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Bounds.
const (
	// MaxSubject is how long a subject may be, in bytes (OpenID Connect Core 1.0 §2).
	MaxSubject = 255

	maxPart    = 253 // bytes of one part of a name
	maxPattern = 512 // bytes
)

// Ref names a control plane of an organization. Space and Group are both given or
// both empty: they are the parts of the form of names that is scoped to a group.
type Ref struct {
	Space string
	Group string
	Name  string
}

// ParseRef reads NAME or SPACE/GROUP/NAME.
func ParseRef(s string) (Ref, error) {
	r, err := cut(s)
	if err != nil {
		return Ref{}, err
	}
	return r, r.Validate()
}

// cut takes NAME or SPACE/GROUP/NAME apart, and looks at no part.
func cut(s string) (Ref, error) {
	if len(s) > maxPattern {
		return Ref{}, fmt.Errorf("control plane %.60q… is longer than %d bytes", s, maxPattern)
	}
	switch parts := strings.Split(s, "/"); len(parts) {
	case 1:
		return Ref{Name: s}, nil
	case 3:
		if parts[0] == "" || parts[1] == "" {
			break
		}
		return Ref{Space: parts[0], Group: parts[1], Name: parts[2]}, nil
	}
	return Ref{}, fmt.Errorf("control plane %.200q: want NAME, or SPACE/GROUP/NAME", s)
}

// Scoped reports whether the name is scoped to a group.
func (r Ref) Scoped() bool { return r.Space != "" || r.Group != "" }

// String returns the name as ParseRef reads it.
func (r Ref) String() string {
	if r.Scoped() {
		return r.Space + "/" + r.Group + "/" + r.Name
	}
	return r.Name
}

// Validate says whether each part is a name.
func (r Ref) Validate() error {
	if r.Scoped() {
		if err := validatePart("space", r.Space); err != nil {
			return err
		}
		if err := validatePart("group", r.Group); err != nil {
			return err
		}
	}
	return validatePart("control plane", r.Name)
}

// Subject returns the subject of the identity tokens of a provider in a control plane
// of an account, which is an organization:
//
//	mcp:ACCOUNT/NAME:provider:PROVIDER
//	mcp:ACCOUNT/SPACE/GROUP/NAME:PROVIDER
//
// the second for a name that is scoped to a group. No part can be read as another.
func Subject(account string, r Ref, provider string) (string, error) {
	if err := validatePart("account", account); err != nil {
		return "", err
	}
	if err := r.Validate(); err != nil {
		return "", err
	}
	if err := validatePart("provider", provider); err != nil {
		return "", err
	}
	s := "mcp:" + account + "/" + r.String()
	if !r.Scoped() {
		s += ":provider"
	}
	if s += ":" + provider; len(s) > MaxSubject {
		return "", fmt.Errorf("subject %.60q… has %d bytes; at most %d are possible: use shorter names", s, len(s), MaxSubject)
	}
	return s, nil
}

// validatePart allows names of a-z, 0-9, '-' and '.', as Kubernetes has for packages:
// nothing that separates parts, and no wildcard of anybody's policies.
func validatePart(kind, s string) error {
	if s == "" {
		return fmt.Errorf("%s is missing", kind)
	}
	if len(s) > maxPart {
		return fmt.Errorf("%s %.60q… has %d bytes; at most %d are possible", kind, s, len(s), maxPart)
	}
	for i := range len(s) {
		c := s[i]
		alphanumeric := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alphanumeric && (c != '-' && c != '.' || i == 0 || i == len(s)-1) {
			return fmt.Errorf("%s %.260q: want a-z, 0-9, '-' and '.', with a letter or digit at both ends", kind, s)
		}
	}
	return nil
}

// Pattern chooses control planes. The zero Pattern chooses none.
type Pattern struct {
	text  string
	parts []*regexp.Regexp // of the name, or of space, group and name
}

// ParsePattern reads NAME or SPACE/GROUP/NAME, in which * stands for one or more
// characters of a part. A pattern of the one form chooses nothing of the other.
func ParsePattern(s string) (Pattern, error) {
	r, err := cut(s)
	if err != nil {
		return Pattern{}, err
	}
	parts := []string{r.Name}
	if r.Scoped() {
		parts = []string{r.Space, r.Group, r.Name}
	}
	p := Pattern{text: s}
	for _, part := range parts {
		if strings.Contains(part, "**") {
			return Pattern{}, fmt.Errorf("pattern %.200q: one * already stands for any characters of a part", s)
		}
		// What a star stands for has to leave a name.
		if err := validatePart("control plane", strings.ReplaceAll(part, "*", "x")); err != nil {
			return Pattern{}, err
		}
		like, err := regexp.Compile(`\A` + strings.ReplaceAll(regexp.QuoteMeta(part), `\*`, `[^:/]+`) + `\z`)
		if err != nil {
			return Pattern{}, fmt.Errorf("pattern %.200q cannot be used: %w", s, err)
		}
		p.parts = append(p.parts, like)
	}
	return p, nil
}

// maxPatterns bounds what one caller is given.
const maxPatterns = 64

// ParsePatterns reads patterns, of which there may be none.
func ParsePatterns(texts []string) ([]Pattern, error) {
	if len(texts) > maxPatterns {
		return nil, fmt.Errorf("%d patterns of control planes; at most %d are possible", len(texts), maxPatterns)
	}
	all := make([]Pattern, 0, len(texts))
	var errs []error
	for _, text := range texts {
		p, err := ParsePattern(text)
		errs = append(errs, err)
		all = append(all, p)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return all, nil
}

// String returns the pattern as ParsePattern reads it.
func (p Pattern) String() string { return p.text }

// Match reports whether the pattern chooses a control plane.
func (p Pattern) Match(r Ref) bool {
	parts := []string{r.Name}
	if r.Scoped() {
		parts = []string{r.Space, r.Group, r.Name}
	}
	if len(parts) != len(p.parts) || r.Validate() != nil {
		return false
	}
	for i, like := range p.parts {
		if !like.MatchString(parts[i]) {
			return false
		}
	}
	return true
}

// Match reports whether one of some patterns chooses a control plane.
func Match(all []Pattern, r Ref) bool {
	for _, p := range all {
		if p.Match(r) {
			return true
		}
	}
	return false
}
