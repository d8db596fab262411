// Package cli is the command line of the program postern: commands that map
// flags, environment and files to settings, and call what does the work.
// Every command is made by a constructor from a command.World, so that tests
// run them without a process.
package cli

import (
	"github.com/spf13/cobra"

	"postern.dev/postern/internal/cli/agentcmd"
	"postern.dev/postern/internal/cli/command"
)

// The groups of commands in the help text.
const (
	groupRun    = "run"
	groupUse    = "use"
	groupSignIn = "sign-in"
	groupManage = "manage"
)

// New returns the program's root command.
func New(w command.World) *cobra.Command {
	if w.Env.Context == nil {
		w.Env.Context = contextOf(w)
	}
	root := command.Group("postern", "Reach private networks through agents that only dial out")
	root.Long = `Postern lets programs outside reach what is inside private networks, through agents
that only dial out: no inbound port, no VPN, no kubeconfig stored outside.

Start with 'postern dev', which runs everything in one process and prints what to try.`
	root.Version = command.Version()
	root.AddGroup(
		&cobra.Group{ID: groupRun, Title: "Run a part of Postern:"},
		&cobra.Group{ID: groupUse, Title: "Use and diagnose it:"},
		&cobra.Group{ID: groupSignIn, Title: "Sign in:"},
		&cobra.Group{ID: groupManage, Title: "Manage a hub:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	agent := agentcmd.New(w, "postern agent")
	agent.AddCommand(newAgentNew(w), newJoin(w), newRegister(w), newUnregister(w), newKey(w), newLabel(w),
		newRevoke(w, revocableAgent()), newRestore(w, revocableAgent()))
	proxy := newProxy(w)
	proxy.AddCommand(newRevoke(w, revocableProxy()), newRestore(w, revocableProxy()))
	add(groupRun, newDev(w), newHub(w), agent, proxy, newOperator(w), newIssuer(w))
	add(groupUse, newForward(w), newClusters(w), newKubeconfig(w), newKubectl(w), newAgents(w), newStatus(w), newDoctor(w), newPolicy(w), newAudit(w))
	add(groupSignIn, newLogin(w), newLogout(w), newWhoAmI(w), newContext(w), newCredential(w))
	add(groupManage, newOrganization(w), newRobot(w), newTrust(w), newAccess(w), newLimit(w), newRole(w), newUser(w), newSession(w), newRevocations(w), newAdminToken(w), newCA(w))
	root.AddCommand(newInstall(w), newConfig(w), newVersion(w))
	return root
}
