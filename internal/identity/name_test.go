package identity_test

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"postern.dev/postern/internal/identity"
)

func TestNames(t *testing.T) {
	t.Parallel()
	label := regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\z`)
	check := func(t interface{ Errorf(string, ...any) }, s string) {
		if err := identity.ValidateName("agent", s); (err == nil) != label.MatchString(s) {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{
		"", "a", "0", "-", "a-", "-a", "a-b", "a--b", "A", "a.b", "a b", "a\n", "é", "a/b", strings.Repeat("a", 63), strings.Repeat("a", 64), "\xff",
	} {
		check(t, s)
	}
	rapid.Check(t, func(t *rapid.T) { check(t, rapid.StringMatching(`[-a-zB0-9.]{0,66}`).Draw(t, "name")) })
}
