package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/wire"
)

// newToken returns "robot token" with what can be done to one.
func newToken(w command.World) *cobra.Command {
	cmd := command.Group("token", "Make, list and revoke tokens of a robot",
		newTokenCreate(w), newTokenList(w), newTokenDelete(w))
	cmd.Aliases = []string{"tokens"}
	return cmd
}

// tokenOptions are the flags of "robot token create".
type tokenOptions struct {
	file    string // JSON; "-" for standard output
	output  string // the older spelling; "-" for two lines of text on standard output
	expires time.Duration
	force   bool
}

func newTokenCreate(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create ROBOT NAME",
		Short: "Make a token for a robot and write it to a file",
		Long: `Make a token for a robot and write it to a file, as JSON with the members accessId
and token, readable by its owner only. The hub keeps a digest and can never show the
token again.

The command can be repeated: if the robot has a token of that NAME and FILE holds it,
nothing is done. If FILE holds something else, or the token is not in FILE, the command
fails; --force revokes the robot's token of that NAME, if there is one, makes a new one
and replaces FILE.`,
		Example: `  postern robot token create proxyagent private-cluster -f ./token.json -a acme

  # To another program, and nowhere else.
  postern robot token create proxyagent ci -f - -a acme | jq -r .token`,
		Args: command.Exact("ROBOT", "NAME"),
	}
	var o tokenOptions
	cmd.Flags().StringVarP(&o.file, "file", "f", "", "`FILE` for the token, - for standard output")
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "older spelling of --file, with - printing lines of text: `FILE`")
	cmd.Flags().DurationVar(&o.expires, "expires-in", 0, "revoke the token after this time; 0 means never")
	cmd.Flags().BoolVar(&o.force, "force", false, "replace the file, and the robot's token of that name")
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for i, kind := range []string{"robot", "token name"} {
			if err := checkName(kind, args[i]); err != nil {
				return err
			}
		}
		switch {
		case o.file == "" && o.output == "":
			return &command.UsageError{Err: fmt.Errorf("say where the token goes: --file FILE, or --file - for standard output")}
		case o.file != "" && o.output != "":
			return &command.UsageError{Err: fmt.Errorf("--file and --output say the same thing; give one of them")}
		case o.expires < 0 || o.expires%time.Second != 0:
			return &command.UsageError{Err: fmt.Errorf("--expires-in %v: want a positive number of whole seconds", o.expires)}
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			return createToken(ctx, w, c, org, args[0], args[1], o)
		})
	}
	return cmd
}

// createToken makes the token and puts it where it shall go. The file is opened
// before the hub is asked, so that no token is made that cannot be kept.
func createToken(ctx context.Context, w command.World, c *api.Client, org, robot, name string, o tokenOptions) error {
	path := o.file + o.output
	var file *secretFile
	if path != "-" {
		if !o.force {
			if done, err := keptToken(ctx, w, c, org, robot, name, path); done || err != nil {
				return err
			}
		}
		var err error
		if file, err = newSecretFile(path, o.force); err != nil {
			return err
		}
		defer file.discard()
	}

	request := api.CreateToken{Name: name, ExpiresIn: int64(o.expires / time.Second)}
	token, err := c.CreateRobotToken(ctx, org, robot, request)
	if api.IsExists(err) {
		if !o.force {
			return wire.AsFailure(err, wire.LegHub).WithHint("the hub cannot show it again; choose another name, or revoke and replace it with --force")
		}
		if err := c.DeleteRobotToken(ctx, org, robot, name); err != nil && !api.IsNotFound(err) {
			return err
		}
		token, err = c.CreateRobotToken(ctx, org, robot, request)
	}
	if err != nil {
		return err
	}
	switch {
	case file != nil:
		if err := file.commit(token); err != nil {
			// Nobody has this token: do not leave it behind.
			if revoked := c.DeleteRobotToken(ctx, org, robot, token.AccessID); revoked != nil {
				return fmt.Errorf("%w; and token %s could not be revoked: %w", err, token.AccessID, revoked)
			}
			return err
		}
		fmt.Fprintf(w.Stderr, "token %s of robot %s/%s written to %s\n", name, org, robot, path)
		return nil
	case o.output != "":
		_, err = fmt.Fprintf(w.Stdout, "Access ID: %s\nToken: %s\n", token.AccessID, token.Token)
		return wrote(err)
	default:
		return formatJSON.print(w.Stdout, token, nil)
	}
}

// keptToken reports whether path already holds the robot's token of that name.
// Anything else in that place is an error.
func keptToken(ctx context.Context, w command.World, c *api.Client, org, robot, name, path string) (bool, error) {
	if !regularFileExists(path) {
		return false, nil
	}
	kept, _, err := enroll.ReadTokenFile(path)
	if err == nil {
		tokens, err := c.RobotTokens(ctx, org, robot)
		if err != nil {
			return false, err
		}
		for _, t := range tokens {
			if t.Name == name && t.AccessID == kept.AccessID {
				fmt.Fprintf(w.Stderr, "token %s of robot %s/%s is in %s already\n", name, org, robot, path)
				return true, nil
			}
		}
	}
	return false, &command.UsageError{Err: fmt.Errorf("%s exists and holds something else; choose another file, or replace it with --force", path)}
}

func newTokenList(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list ROBOT",
		Aliases: []string{"ls"},
		Short:   "List a robot's tokens",
		Example: "  postern robot token list proxyagent -a acme",
		Args:    command.Exact("ROBOT"),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			all, err := c.RobotTokens(ctx, org, args[0])
			if err != nil {
				return err
			}
			return output.print(w.Stdout, nonNil(all), func(r *rows) {
				r.row("NAME", "ACCESS ID", "CREATED", "EXPIRES", "LAST USED")
				for _, t := range all {
					r.row(t.Name, t.AccessID, date(t.Created, ""), date(t.Expires, "never"), ago(time.Now(), t.LastUsed))
				}
			})
		})
	}
	return cmd
}

func newTokenDelete(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "delete ROBOT TOKEN",
		Aliases: []string{"rm", "revoke"},
		Short:   "Revoke a robot's token",
		Long:    "Revoke a robot's token, given by its name or access ID. Agents and proxies that enrolled with it are cut off.",
		Example: "  postern robot token delete proxyagent private-cluster -a acme",
		Args:    command.Exact("ROBOT", "TOKEN"),
	}
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			return deleted(w, c.DeleteRobotToken(ctx, org, args[0], args[1]), "token %s of robot %s/%s", args[1], org, args[0])
		})
	}
	return cmd
}
