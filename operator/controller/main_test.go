package controller

import (
	"context"
	"fmt"
	"os"
	"testing"

	"postern.dev/postern/operator/kubetest"
)

// cluster is shared by the tests of this package: each has a namespace of its own.
var cluster *kubetest.Cluster //nolint:gochecknoglobals // TestMain has no other way

func TestMain(m *testing.M) {
	var err error
	if cluster, err = kubetest.Start(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := cluster.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
