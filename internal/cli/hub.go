package cli

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/headroom"
	"postern.dev/postern/internal/hub"
)

func newHub(w command.World) *cobra.Command {
	settings := config.DefaultHub()
	set := config.Bind(&settings)
	cmd := &cobra.Command{
		Use:   "hub",
		Short: "Run a hub: identity, registry, bus, relay",
		Long: `Run a hub. At its first start it makes a certificate authority, signing keys, an
administrator's token and an organization called "default" in the directory of --data;
later it goes on from there. Agents, proxies and commands all come to its one port.

With --http, --socks5 or --forward it is a proxy too. There the proxy user name is the
agent, AGENT or ORG/AGENT, and the password is a robot token; on loopback no password is
asked for unless one is set.

Every flag can be set by the environment variable behind it, or in a YAML file
(trustDomain for --trust-domain). A flag wins over the environment, and that over the
file.`,
		Example: `  postern hub --data /var/lib/postern

  # For other machines, with a name in its own certificate.
  postern hub --data /var/lib/postern --listen :4222 --tls-name hub.example.org

  # With the certificate of a public CA: nobody needs --ca-file then.
  postern hub --data /var/lib/postern --listen :443 --tls-cert-file tls.crt --tls-key-file tls.key`,
		Args: command.Exact(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := set.Load(w.Env); err != nil {
				return err
			}
			return command.RunRole(cmd.Context(), w, "hub", settings.Log, settings.Metrics,
				func(ctx context.Context, t command.Tools) error {
					return command.WithHeadroom(ctx, w, headroom.Config{Percent: 75, Floor: 16 << 20}, hub.New(settings, hub.Options{
						Version: t.Version, Registry: t.Registry, Health: t.Health, Log: t.Log, Getenv: w.Getenv,
						Started: func(i hub.Info) { fmt.Fprint(w.Stdout, greeting(i)) },
					}).Run)
				})
		},
	}
	command.Bind(cmd, set)
	cmd.AddCommand(newHubBackup(w), newHubRestore(w), newHubRotateKey(w), newHubAdminToken(w))
	return cmd
}

// greeting tells a person where a hub is and what to do next.
func greeting(i hub.Info) string {
	var b strings.Builder
	url := hubURL(i.Listen)
	fmt.Fprintf(&b, "The hub listens on %s.\n", i.Listen)
	fmt.Fprintf(&b, "  trust domain  %s\n  CA            %s\n  CA pin        %s\n", i.TrustDomain, i.CAFile, i.Pin)
	for _, c := range i.Clients {
		fmt.Fprintf(&b, "  clients       %s\n", c)
	}
	b.WriteString("Next, in another shell:\n")
	fmt.Fprintf(&b, "  %s\n", adminEnvironment(url, i))
	b.WriteString("  postern robot create machines\n  postern robot token create machines first -f token.json\n")
	agent := "  postern agent --connect-url " + strings.Replace(url, "https://", "tls://", 1)
	if !i.PublicCA {
		agent += " --ca-file " + quote(absolute(i.CAFile))
	}
	b.WriteString(agent + " \\\n    --organization default --agent-id first --token-file token.json --allow tcp:HOST:PORT\n")
	return b.String()
}

// adminEnvironment returns the line that makes a shell an administrator's.
func adminEnvironment(url string, i hub.Info) string {
	line := "export POSTERN_HUB=" + url + " POSTERN_TOKEN_FILE=" + quote(absolute(i.AdminTokenFile))
	if !i.PublicCA {
		line += " POSTERN_CA_FILE=" + quote(absolute(i.CAFile))
	}
	return line
}

// hubURL returns the address under which this machine reaches a hub that listens
// on addr.
func hubURL(addr net.Addr) string {
	host, port := "127.0.0.1", "4222"
	if ap, err := netip.ParseAddrPort(addr.String()); err == nil {
		port = strconv.Itoa(int(ap.Port()))
		if ip := ap.Addr().Unmap(); !ip.IsUnspecified() {
			host = ip.String()
		}
	}
	return "https://" + net.JoinHostPort(host, port)
}

// absolute returns a path that means the same in every directory.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
