// Command tool is the one static program of the test images: a box of small commands, chosen by
// the name it is called by or else by its first argument. Images that hold nothing else have no
// shell, as hardened images do not.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if err := run(os.Args); err != nil {
		if exit, ok := errors.AsType[exitError](err); ok {
			os.Exit(int(exit))
		}
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
		os.Exit(1)
	}
}

// exitError ends the program with its number and no text.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit %d", int(e)) }

func run(args []string) error {
	commands := map[string]func(args []string) error{
		"cat":    cat,
		"echo":   echo,
		"env":    env,
		"exit":   exit,
		"gen":    gen,
		"init":   reap,
		"linger": linger,
		"pause":  pause,
		"serve":  serve,
		"sha256": sha256sum,
		"sleep":  sleep,
		"tar":    tarball,
		"test":   test,
		"tick":   tick,
		"tty":    tty,
	}
	name, rest := filepath.Base(args[0]), args[1:]
	if _, ok := commands[name]; !ok {
		if len(rest) == 0 {
			return pause(nil)
		}
		name, rest = rest[0], rest[1:]
	}
	command, ok := commands[name]
	if !ok {
		return fmt.Errorf("no command %q", name)
	}
	return command(rest)
}
