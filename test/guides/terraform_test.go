//go:build linux

package guides_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern.dev/postern/test/guides/tools"
)

// TestTerraform has OpenTofu make and remove a ConfigMap in the private cluster. Its provider is not
// the guide's, whose newer versions the module proxy lacks, but one that takes the same arguments.
func TestTerraform(t *testing.T) {
	w := newWorld(t)
	w.link(t, need(t, tools.OpenTofu()).Path, "bin/tofu")
	provider := need(t, tools.KubectlProvider())
	w.link(t, provider.Path, "mirror/registry.opentofu.org/gavinbunney/kubectl/1.19.0/linux_amd64/terraform-provider-kubectl_v1.19.0")
	w.write(t, "tofu.rc", "provider_installation {\n  filesystem_mirror {\n    path = \""+w.file("mirror")+"\"\n  }\n}\n")
	w.write(t, "providers.tf", `terraform {
  required_providers {
    kubernetes = { source = "gavinbunney/kubectl" }
  }
}
`)
	w.write(t, "provider.tf", example(t, "many-clusters.md", `provider "kubernetes"`, "https://hub.example.org:4222", "https://"+w.hubAddr,
		// What the guide says of CI.
		`"https://`+w.hubAddr+`"]`, `"https://`+w.hubAddr+`", "--token-file", "token.json"]`))
	w.write(t, "main.tf", `resource "kubectl_manifest" "greeting" {
  provider  = kubernetes
  yaml_body = yamlencode({ apiVersion = "v1", kind = "ConfigMap", metadata = { name = "from-tofu", namespace = "default" } })
}
`)
	w.tofu(t, "init")
	w.tofu(t, "apply -auto-approve")
	w.configMap(t, "from-tofu")
	w.recorded(t, "request", "from-tofu")
	state := w.read(t, "terraform.tfstate")
	if !strings.Contains(state, "from-tofu") || strings.Contains(state, w.token(t)) {
		t.Errorf("the state is not as the guide says:\n%s", strings.ReplaceAll(state, w.token(t), "TOKEN"))
	}
	w.tofu(t, "destroy -auto-approve")
	gone(t, w, "from-tofu")
}

// TestTerraformState keeps OpenTofu's state in the private cluster.
func TestTerraformState(t *testing.T) {
	w := newWorld(t)
	w.link(t, need(t, tools.OpenTofu()).Path, "bin/tofu")
	w.write(t, "tofu.rc", "provider_installation {\n  direct {\n    exclude = [\"*/*\"]\n  }\n}\n")
	w.write(t, "main.tf", `resource "terraform_data" "kept" { input = "kept" }`)

	// If this backend can do with a plugin one day, the guide has to say so.
	w.write(t, "backend.tf", `terraform {
  backend "kubernetes" {
    secret_suffix = "office"
    host          = "https://`+w.hubAddr+`/office"
    exec {
      api_version = "client.authentication.k8s.io/v1"
      command     = "postern"
    }
  }
}
`)
	if out, err := w.run(limit(t, 2*quick), "TF_CLI_CONFIG_FILE=tofu.rc tofu init -input=false -no-color"); err == nil || !strings.Contains(out, "interactiveMode must be specified") {
		t.Errorf("the backend with a plugin: %v\n%s", err, out)
	}

	w.shell(t, example(t, "many-clusters.md", "--output office.kubeconfig"))
	w.write(t, "backend.tf", example(t, "many-clusters.md", `backend "kubernetes"`))
	w.tofu(t, "init -reconfigure")
	w.tofu(t, "apply -auto-approve")
	if out := kubectl(t, w.api, "", "get", "secret", "tfstate-default-office", "-n", "default", "-o", "jsonpath={.data.tfstate}"); out == "" {
		t.Error("the Secret of the state is empty")
	}
	w.recorded(t, "request", "tfstate-default-office")
	if out := w.tofu(t, "state list"); !strings.Contains(out, "terraform_data.kept") {
		t.Errorf("the state has %q", out)
	}
}

// tofu runs OpenTofu in the reader's folder, where it finds plugins nowhere but in the mirror.
func (w *world) tofu(t *testing.T, args string) string {
	t.Helper()
	command, rest, _ := strings.Cut(args, " ")
	if command != "state" {
		rest += " -input=false -no-color"
	}
	return w.shell(t, "TF_CLI_CONFIG_FILE=tofu.rc tofu "+command+" "+rest)
}

// link puts a program into the reader's folder.
func (w *world) link(t *testing.T, program, name string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(w.file(name)), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, w.file(name)); err != nil {
		t.Fatal(err)
	}
}
