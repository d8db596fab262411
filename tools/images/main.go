// Command images makes container images of Postern's programs, without Docker and without a
// base image, and pushes them to a registry.
//
//	images build -name postern -version v1.2.3 -program linux/amd64=FILE -program linux/arm64=FILE
//	images push -layout dist/images/postern ghcr.io/postern-dev/postern:v1.2.3
//
// Build writes an OCI layout with an index of all platforms, and for each platform an archive
// that "ctr images import" and "docker load" take. The bill of materials FILE.cdx.json beside a
// program is attached to its image as a referrer. The same programs, version and date give the
// same bytes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		stop()
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: images build|push [flags]; see images build -h")

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errUsage
	}
	switch args[0] {
	case "build":
		return runBuild(args[1:], out)
	case "push":
		return runPush(ctx, args[1:], out)
	default:
		return errUsage
	}
}

func runBuild(args []string, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("images build", flag.ContinueOnError)
	flags.StringVar(&o.name, "name", "", "the program's `name`: that of the image and of its entrypoint")
	flags.StringVar(&o.version, "version", "", "the `version`, v1.2.3, which is the image's tag")
	flags.StringVar(&o.description, "description", "", "one `sentence` about the program")
	flags.StringVar(&o.revision, "revision", "", "the `commit` that was built")
	flags.StringVar(&o.source, "source", "https://github.com/postern-dev/postern", "where the sources are, as a `URL`")
	flags.StringVar(&o.repository, "repository", "ghcr.io/postern-dev", "the registry and `path` under which archives are imported")
	flags.StringVar(&o.out, "out", "dist/images", "the `folder` to write into")
	flags.Func("program", "a platform and the program for it, as `OS/ARCH=FILE`; once for each", func(s string) error {
		p, err := parseProgram(s)
		o.programs = append(o.programs, p)
		return err
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	created, err := epoch(os.Getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	o.created = created
	written, err := build(o)
	if err != nil {
		return err
	}
	for _, line := range written {
		fmt.Fprintln(out, line)
	}
	return nil
}

func runPush(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("images push", flag.ContinueOnError)
	layout := flags.String("layout", "", "the `folder` of the image, as images build wrote it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *layout == "" || flags.NArg() != 1 {
		return errors.New("usage: images push -layout FOLDER REGISTRY/PATH/NAME:TAG")
	}
	pushed, err := push(ctx, *layout, flags.Arg(0))
	if err != nil {
		return err
	}
	for _, line := range pushed {
		fmt.Fprintln(out, line)
	}
	return nil
}

// parseProgram reads OS/ARCH=FILE.
func parseProgram(s string) (program, error) {
	platform, file, ok := strings.Cut(s, "=")
	p, err := v1.ParsePlatform(platform)
	if !ok || file == "" || err != nil || p.OS == "" || p.Architecture == "" {
		return program{}, fmt.Errorf("%q: want OS/ARCH=FILE", s)
	}
	return program{platform: *p, file: file}, nil
}

// epoch reads SOURCE_DATE_EPOCH: seconds since 1970. Unset means 1970, never now, so that to
// forget it does not make an image that nobody can build again.
func epoch(s string) (time.Time, error) {
	if s == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	seconds, err := strconv.ParseInt(s, 10, 64)
	if err != nil || seconds < 0 {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH is %q: want seconds since 1970", s)
	}
	return time.Unix(seconds, 0).UTC(), nil
}
