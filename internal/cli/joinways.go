package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"postern.dev/postern/internal/api"
)

// ways are commands that start an agent with a join string. None of them has the
// string itself in its arguments, where every user of a machine could read it: they
// take it from a file.
type ways struct {
	File      string `json:"file"` // that the commands take the join string from
	Program   string `json:"program"`
	Container string `json:"container"`
	Helm      string `json:"helm"`
	Manifests string `json:"manifests"`
}

// image and chart are where the commands look for what runs the agent; who keeps them in
// a registry of his own takes its address instead.
const (
	image = "ghcr.io/postern-dev/postern-agent"
	chart = "oci://ghcr.io/postern-dev/charts/private-network-agent"
)

func waysToStart(j api.NewJoin, allow []string, file string) ways {
	if file == "" {
		file = j.Agent + ".join"
	}
	rules, values := "", ""
	for i, rule := range allow {
		rules += " --allow " + shellQuote(rule)
		values += fmt.Sprintf(" \\\n  --set %s", shellQuote(fmt.Sprintf("agent.allow[%d]=%s", i, strings.ReplaceAll(rule, ",", `\,`))))
	}
	mounted := shellQuote(file)
	if !strings.HasPrefix(file, "/") {
		mounted = `"$PWD"/` + mounted
	}
	name := "postern-" + j.Agent
	// One replica: the key that the agent makes is kept in a volume, which most clusters mount on one node only.
	secret := fmt.Sprintf("kubectl create secret generic %s-join --from-file=join=%s\n", name, shellQuote(file))
	return ways{
		File:    file,
		Program: fmt.Sprintf("postern-agent --join-file %s --state %s%s", shellQuote(file), shellQuote("./"+name), rules),
		Container: fmt.Sprintf("docker run -d --name %s --restart unless-stopped \\\n  -v %s:/state -v %s:/join:ro \\\n  %s --join-file /join --state /state%s",
			name, name, mounted, image, rules),
		Helm: secret + fmt.Sprintf("helm upgrade --install %s %s \\\n  --set agent.connectUrl=%s --set-string agent.organization=%s --set-string agent.agentId=%s \\\n"+
			"  --set agent.joinSecret=%s-join --set replicas=1%s", name, chart, shellQuote(j.ConnectURL), j.Organization, j.Agent, name, values),
		Manifests: secret + fmt.Sprintf("postern install agent --name %s --connect-url %s --organization %s --agent-id %s \\\n"+
			"  --join-secret %s-join --replicas 1%s | kubectl apply -f -", name, shellQuote(j.ConnectURL), j.Organization, j.Agent, name, rules),
	}
}

// tell writes the join string, unless it stands in a file, and the ways, for people.
func (w ways) tell(out io.Writer, j api.NewJoin) error {
	var b strings.Builder
	if j.JoinString != "" {
		fmt.Fprintf(&b, "The join string for agent %s of organization %s, good once, until %s:\n\n%s\n\n"+
			"It is a secret. Put it into the file %s where the agent is going to run:\n\n  (umask 077; cat > %s)    # paste it, then Enter and Ctrl-D\n\n",
			j.Agent, j.Organization, j.Expires.Local().Format(time.DateTime), j.JoinString, w.File, shellQuote(w.File))
	}
	b.WriteString("Then start the agent, in one of these ways:\n")
	for _, way := range []struct{ name, command string }{
		{"The program", w.Program}, {"A container", w.Container}, {"In Kubernetes, by the Helm chart", w.Helm},
		{"In Kubernetes, without Helm", w.Manifests},
	} {
		fmt.Fprintf(&b, "\n%s:\n\n  %s\n", way.name, strings.ReplaceAll(way.command, "\n", "\n  "))
	}
	b.WriteString("\nWhat may be reached through it is decided by its own --allow rules; without any, only the API server of its cluster.\n")
	_, err := io.WriteString(out, b.String())
	return err
}

// shellQuote returns a text as one word of a shell.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:@%+=,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
