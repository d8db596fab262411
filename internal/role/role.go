// Package role says who may do what at a hub: roles, which are bound to people
// and groups in an organization, and the permissions that each role holds. It is
// pure: the hub binds roles and asks here.
package role

import (
	"fmt"
	"slices"
	"strings"
)

// Permission is what a request to the hub's API needs.
type Permission string

// The permissions. All but Hub are held in one organization.
const (
	Read       Permission = "read"       // see agents, robots, keys, grants and settings; never a secret
	Operate    Permission = "operate"    // register agents, change their keys, make join strings, revoke by name
	Administer Permission = "administer" // robots and their tokens, trusted issuers, access grants and the labels they choose by, limits
	Own        Permission = "own"        // bind roles
	Audit      Permission = "audit"      // read and verify the audit log
	Hub        Permission = "hub"        // organizations, certificate authorities, backups: the hub itself
)

// Role is a set of permissions by name.
type Role string

// The roles that can be bound in an organization.
const (
	Owner    Role = "owner"
	Admin    Role = "admin"
	Operator Role = "operator"
	Viewer   Role = "viewer"
	Auditor  Role = "auditor"
)

// Roles returns the roles, the most powerful first.
func Roles() []Role { return []Role{Owner, Admin, Operator, Viewer, Auditor} }

// Permissions returns what a role holds; none for an unknown one.
func (r Role) Permissions() []Permission {
	switch r {
	case Owner:
		return []Permission{Read, Operate, Administer, Own, Audit}
	case Admin:
		return []Permission{Read, Operate, Administer}
	case Operator:
		return []Permission{Read, Operate}
	case Viewer:
		return []Permission{Read}
	case Auditor:
		return []Permission{Read, Audit}
	default:
		return nil
	}
}

// Holds reports whether the role holds a permission.
func (r Role) Holds(p Permission) bool { return slices.Contains(r.Permissions(), p) }

// Parse reads the name of a role.
func Parse(s string) (Role, error) {
	if r := Role(s); slices.Contains(Roles(), r) {
		return r, nil
	}
	names := make([]string, 0, len(Roles()))
	for _, r := range Roles() {
		names = append(names, string(r))
	}
	return "", fmt.Errorf("role %.60q: want one of %s", s, strings.Join(names, ", "))
}
