package role_test

import (
	"testing"

	"postern.dev/postern/internal/role"
)

// TestPermissions holds what each role may do; a change of this table is a change
// for everybody to whom a role is bound.
func TestPermissions(t *testing.T) {
	t.Parallel()
	all := []role.Permission{role.Read, role.Operate, role.Administer, role.Own, role.Audit, role.Hub}
	want := map[role.Role]string{
		role.Owner: "11111-", role.Admin: "111---", role.Operator: "11----", role.Viewer: "1-----", role.Auditor: "1---1-", "king": "------", "": "------",
	}
	for r, bits := range want {
		for i, p := range all {
			if r.Holds(p) != (bits[i] == '1') {
				t.Errorf("%s holds %s: %v", r, p, r.Holds(p))
			}
		}
	}
	for _, r := range role.Roles() {
		if got, err := role.Parse(string(r)); got != r || err != nil {
			t.Errorf("%s: %v, %v", r, got, err)
		}
	}
	if r, err := role.Parse("Owner"); err == nil {
		t.Errorf("Owner was read as %s", r)
	}
}
