//go:build linux

package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"

	"postern.dev/postern/test/kube/image"
)

// ToolImage is the image that is on the node from the start. Its programs have no shell.
const ToolImage = "postern.test/tool:1"

// buildTool builds the program of the test images, which is also the sandbox's first process.
func (c *Cluster) buildTool(ctx context.Context) error {
	c.tool = c.path("tool")
	return GoBuild(ctx, "", c.tool, "postern.dev/postern/test/kube/tool")
}

// GoBuild builds a static program of the module in which dir is, "" for the current folder.
func GoBuild(ctx context.Context, dir, output, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", output, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// Import puts an image on the node, under its own reference; pods then use it without pulling.
func (c *Cluster) Import(ctx context.Context, m image.Image) error {
	archive := c.path(path.Base(m.Ref) + ".tar")
	if err := m.WriteFile(archive); err != nil {
		return err
	}
	defer os.Remove(archive)
	return c.ImportArchive(ctx, archive)
}

// ImportArchive puts an image on the node from an OCI archive, under the name that the archive
// says.
func (c *Cluster) ImportArchive(ctx context.Context, archive string) error {
	if _, err := c.Exec(ctx, "/usr/bin/ctr", "-a", socket, "-n", "k8s.io", "images", "import", archive); err != nil {
		return fmt.Errorf("import the image %s: %w", archive, err)
	}
	return nil
}

// Tag gives an image on the node a further name.
func (c *Cluster) Tag(ctx context.Context, name, further string) error {
	if _, err := c.Exec(ctx, "/usr/bin/ctr", "-a", socket, "-n", "k8s.io", "images", "tag", "--force", name, further); err != nil {
		return fmt.Errorf("tag the image %s: %w", name, err)
	}
	return nil
}

func (c *Cluster) importTool(ctx context.Context) error {
	links := make(map[string]string)
	for _, name := range []string{"cat", "echo", "env", "exit", "gen", "linger", "serve", "sha256", "sleep", "tar", "test", "tick", "tty"} {
		links["/bin/"+name] = "tool"
	}
	return c.Import(ctx, image.Image{
		Ref:        ToolImage,
		Files:      map[string]string{"/bin/tool": c.tool},
		Links:      links,
		Data:       map[string]string{"/etc/passwd": "root:x:0:0:root:/:/bin/tool\n"},
		Entrypoint: []string{"/bin/tool"},
		Env:        []string{"PATH=/bin"},
	})
}
