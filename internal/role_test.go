package internal_test

import (
	"os"
	"strings"
	"testing"

	"postern.dev/postern/internal/role"
)

// TestRolesInTheGuide keeps the table of roles in the guide true.
func TestRolesInTheGuide(t *testing.T) {
	text, err := os.ReadFile("../docs/guide/sign-in.md")
	if err != nil {
		t.Fatal(err)
	}
	permissions := []role.Permission{role.Read, role.Operate, role.Administer, role.Own, role.Audit}
	for _, r := range role.Roles() {
		row := "| " + string(r) + " |"
		for _, p := range permissions {
			if r.Holds(p) {
				row += " yes"
			}
			row += " |"
		}
		if !strings.Contains(string(text), row+"\n") {
			t.Errorf("docs/guide/sign-in.md lacks the row %q", row)
		}
	}
	for _, p := range permissions {
		if !strings.Contains(string(text), "*"+string(p)+"*: ") {
			t.Errorf("docs/guide/sign-in.md does not say what %s is", p)
		}
	}
}
