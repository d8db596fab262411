package cli

import (
	"context"
	"fmt"
	"net/url"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/login"
)

func newLogin(w command.World) *cobra.Command {
	settings := config.DefaultLogin()
	set := config.Bind(&settings)
	cmd := &cobra.Command{
		Use:   "login [HUB]",
		Short: "Sign in at a hub with your identity provider",
		Long: `Sign in at a hub with the identity provider that it names. A browser opens, or its
address is printed; where there is no browser, you get a code to enter on another
machine. What comes of it is a session, which is renewed silently as long as the
provider lets it, and a context: the hub, how to reach it, and the organization to work
in. From then on commands need no further settings.

Contexts are kept in ~/.config/postern/config.yaml, or in the directory of
POSTERN_CONFIG_DIR, and tokens beside it in a file that nobody else may read.`,
		Example: `  postern login https://hub.example.org:4222 --ca-pin sha256:...

  # On a machine without a browser.
  postern login https://hub.example.org:4222 --device

  # Again, at the hub of the current context.
  postern login`,
		Args: command.AtMost("HUB"),
	}
	command.Bind(cmd, set)
	contextFlag(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		store, err := login.Open(w.Getenv)
		if err != nil {
			return err
		}
		all, err := store.Contexts()
		if err != nil {
			return err
		}
		if len(args) == 1 {
			address := args[0]
			if !strings.Contains(address, "://") {
				address = "https://" + address
			}
			if err := cmd.Flags().Set("hub", address); err != nil {
				return &command.UsageError{Err: err}
			}
		}
		settings.Hub = completeLogin(cmd, w, &settings, all)
		if err := set.Load(w.Env); err != nil {
			return err
		}
		return signIn(cmd.Context(), w, store, all, settings)
	}
	return cmd
}

// completeLogin takes what no flag gives from the context that is signed in to
// again, and returns the hub's address.
func completeLogin(cmd *cobra.Command, w command.World, s *config.LoginClient, all login.Contexts) string {
	given := s.Hub
	if given == "" {
		given = w.Getenv("POSTERN_HUB")
	}
	name := s.Context
	if name == "" {
		name = w.Getenv("POSTERN_CONTEXT")
	}
	c, _ := all.Find(name)
	if i := slices.IndexFunc(all.Contexts, func(one login.Context) bool { return one.Hub == strings.TrimSuffix(given, "/") }); name == "" && given != "" {
		c = nil
		if i >= 0 {
			c = &all.Contexts[i]
		}
	}
	if c == nil || given != "" && c.Hub != strings.TrimSuffix(given, "/") {
		return s.Hub
	}
	s.Context = c.Name
	if !cmd.Flags().Changed("ca-file") && !cmd.Flags().Changed("ca-pin") {
		s.CAFile, s.CAPin = c.CAFile, c.CAPin
	}
	for _, one := range []struct {
		flag string
		to   *string
		from string
	}{{"proxy-url", &s.ProxyURL, c.ProxyURL}, {"proxy-ca-file", &s.ProxyCAFile, c.ProxyCAFile}, {"organization", &s.Organization, c.Organization}} {
		if !cmd.Flags().Changed(one.flag) {
			*one.to = one.from
		}
	}
	return c.Hub
}

// signIn signs somebody in and keeps what that gives.
func signIn(ctx context.Context, w command.World, store *login.Store, all login.Contexts, s config.LoginClient) error {
	one := login.Context{
		Name: s.Context, Hub: s.Hub, CAFile: absoluteIfAny(s.CAFile), CAPin: s.CAPin,
		ProxyURL: s.ProxyURL, ProxyCAFile: absoluteIfAny(s.ProxyCAFile), Organization: s.Organization,
	}
	if one.Name == "" {
		one.Name = nameContext(all, s.Hub)
	}
	if err := (&login.Contexts{}).Save(one); err != nil { // before anybody goes to a browser for it
		return err
	}
	d, err := login.Dial(one, w.Getenv)
	if err != nil {
		return err
	}
	defer d.CloseIdle()
	hub := &api.Client{BaseURL: d.BaseURL(), HTTP: d.HTTPClient()}
	short, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	info, err := hub.SignIn(short)
	if err != nil {
		return err
	}
	provider, err := login.NewProvider(short, info, w.Getenv)
	if err != nil {
		return err
	}
	defer provider.Close()
	proof, err := prove(ctx, w, provider, s)
	if err != nil {
		return err
	}
	end, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	tokens, err := login.Begin(end, hub, info, one.Hub, *proof)
	if err != nil {
		return err
	}
	hub.Token = tokens.Session
	me, err := hub.WhoAmI(end)
	if err != nil {
		return err
	}
	one.User = strings.TrimPrefix(me.Principal, "user:")
	if one.Organization == "" {
		one.Organization = onlyOrganization(me)
	}
	if err := store.SaveTokens(end, one.Name, &tokens); err != nil {
		return err
	}
	if err := store.ChangeContexts(end, func(all *login.Contexts) error { return all.Save(one) }); err != nil {
		return err
	}
	fmt.Fprintf(w.Stderr, "Signed in as %s, in context %s", printable(one.User), one.Name)
	if one.Organization != "" {
		fmt.Fprintf(w.Stderr, ", organization %s", one.Organization)
	}
	fmt.Fprintf(w.Stderr, ".\n")
	if tokens.Refresh == "" {
		fmt.Fprintf(w.Stderr, "The session ends at %s: the identity provider gave no refresh token.\n", tokens.Expires.Local().Format(time.TimeOnly))
	}
	if len(me.Roles) == 0 && !me.Hub {
		fmt.Fprintf(w.Stderr, "You have no role in any organization yet. Ask an owner: postern role grant ROLE --to %s -a ORG\n", quote(me.Principal))
	}
	return nil
}

// prove signs in at the provider, by the way that suits this machine.
func prove(ctx context.Context, w command.World, p *login.Provider, s config.LoginClient) (*login.Proof, error) {
	open := ""
	if !s.NoBrowser && !s.Device {
		open = browser(w)
	}
	if s.Device || open == "" && !s.NoBrowser && p.HasDevice() {
		return p.Device(ctx, func(uri, complete, code string, expires time.Time) {
			fmt.Fprintf(w.Stderr, "Open this address on any machine with a browser:\n  %s\nand enter the code:\n  %s\n", printable(uri), printable(code))
			if complete != "" {
				fmt.Fprintf(w.Stderr, "or open this, with the code in it:\n  %s\n", printable(complete))
			}
			fmt.Fprintf(w.Stderr, "Waiting until %s ...\n", expires.Local().Format(time.TimeOnly))
		})
	}
	return p.Browser(ctx, func(address string) {
		fmt.Fprintf(w.Stderr, "Open this address in a browser on this machine to sign in:\n  %s\nWaiting ...\n", address)
		if open != "" {
			// Its own affair from here on: the address stands above.
			if c := exec.Command(open, address); c.Start() == nil {
				go func() { _ = c.Wait() }()
			}
		}
	})
}

// browser returns the program that opens an address in a browser, or "".
func browser(w command.World) string {
	program := "xdg-open"
	switch runtime.GOOS {
	case "darwin":
		program = "open"
	case "windows":
		return ""
	default:
		if w.Getenv("DISPLAY") == "" && w.Getenv("WAYLAND_DISPLAY") == "" {
			return ""
		}
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return ""
	}
	return path
}

// nameContext returns a name for the context of a hub: its host, or host and port
// where another context has that.
func nameContext(all login.Contexts, hub string) string {
	u, err := url.Parse(hub)
	if err != nil {
		return hub // refused later
	}
	name := strings.Trim(u.Hostname(), "[]")
	if strings.HasPrefix(name, ":") {
		name = "ip6" + name
	}
	if slices.ContainsFunc(all.Contexts, func(c login.Context) bool { return c.Name == name && c.Hub != hub }) {
		name += ":" + u.Port()
	}
	return name
}

// onlyOrganization returns the organization in which somebody has a role, if it is
// one.
func onlyOrganization(me api.WhoAmI) string {
	if len(me.Roles) != 1 {
		return ""
	}
	for org := range me.Roles {
		return org
	}
	return ""
}

func absoluteIfAny(path string) string {
	if path == "" {
		return ""
	}
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
