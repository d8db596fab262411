// Package attack_test plays the attacker, in one process: a real hub with two
// organizations, agents and proxies of both, and somebody who does not keep to the
// rules. Each test first shows that what it tries is possible for those who may, and
// then that the attacker gets nothing, and that the victim notices nothing.
//
// The victim's organization is "acme", the attacker's "evil". Agents have the same
// IDs in both.
package attack_test

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
