// Package kubetest runs a real API server with etcd, and no node, for the tests of the operator.
package kubetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"postern.dev/postern/operator/api/crds"
	"postern.dev/postern/test/kube/bins"
)

// StartTime is how long an API server may take to start, or to stop: seconds, unless the machine has
// much else to do.
const StartTime = 2 * time.Minute

// attempts are there because envtest waits for the default namespace for 5 seconds, whoever asks.
const attempts = 3

// Cluster is an API server with the operator's definitions.
type Cluster struct {
	Config *rest.Config // as an administrator

	env     *envtest.Environment
	kubectl string
	dir     string
}

// Start starts a cluster. The programs are built when they are not there, which takes some twenty
// minutes once. The caller stops it.
func Start(ctx context.Context) (*Cluster, error) {
	set, err := bins.Ensure(ctx, func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) })
	if err != nil {
		return nil, fmt.Errorf("start cluster: %w", err)
	}
	definitions, err := Definitions()
	if err != nil {
		return nil, err
	}
	c := &Cluster{kubectl: set.Path("kubectl")}
	for range attempts {
		c.env = &envtest.Environment{
			BinaryAssetsDirectory: set.Dir(), CRDs: definitions, CRDInstallOptions: envtest.CRDInstallOptions{MaxTime: StartTime},
			ControlPlaneStartTimeout: StartTime, ControlPlaneStopTimeout: StartTime,
		}
		if c.Config, err = c.env.Start(); err == nil {
			break
		}
		err = errors.Join(err, c.env.Stop())
	}
	if err != nil {
		return nil, fmt.Errorf("start cluster: %w", err)
	}
	if c.dir, err = os.MkdirTemp("", "kubetest-*"); err == nil {
		err = os.WriteFile(c.Kubeconfig(), c.env.KubeConfig, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("start cluster: %w", errors.Join(err, c.Stop()))
	}
	return c, nil
}

// Stop stops the cluster and removes what it wrote.
func (c *Cluster) Stop() error { return errors.Join(c.env.Stop(), os.RemoveAll(c.dir)) }

// Kubeconfig is the path of an administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.dir, "kubeconfig") }

// Kubectl runs the real kubectl with an input, and returns what it printed: its standard output, or
// the error with its standard error.
func (c *Cluster) Kubectl(ctx context.Context, input string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.kubectl, append([]string{"--kubeconfig", c.Kubeconfig(), "--cache-dir", filepath.Join(c.dir, "cache")}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}

// Definitions returns the operator's definitions.
func Definitions() ([]*apiextensionsv1.CustomResourceDefinition, error) {
	names, err := fs.Glob(crds.Files, "*_proxies.yaml")
	if err != nil {
		return nil, err
	}
	var all []*apiextensionsv1.CustomResourceDefinition
	for _, name := range names {
		text, err := crds.Files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		d := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.UnmarshalStrict(text, d); err != nil {
			return nil, fmt.Errorf("read definition %s: %w", name, err)
		}
		all = append(all, d)
	}
	return all, nil
}
