package tools

// ProviderKubernetes is Crossplane's provider that makes objects in other clusters.
func ProviderKubernetes() Tool {
	return Tool{
		Name: "provider-kubernetes", Module: "github.com/crossplane-contrib/provider-kubernetes", Version: "v1.3.1",
		Sum:     "h1:hiTNUET9DJDb9dl87oIyEXvRdxJtef3qswd16AI3CQs=",
		Package: "./cmd/provider",
		// The library of one cloud, by which nobody signs in here, and which the module proxy may lack.
		Edits: []string{"-replace=github.com/nebius/gosdk=./postern-stub/gosdk"},
		Stub:  "provider-kubernetes",
	}
}

// kubernetes are edits for the versions of the other modules of this repository, so that these
// libraries are compiled once.
func kubernetes() []string {
	return append(require("v0.37.1", "api", "apimachinery", "client-go"), "-go=1.26.0")
}

// require are edits for one version of several libraries of Kubernetes.
func require(version string, libraries ...string) []string {
	var edits []string
	for _, library := range libraries {
		edits = append(edits, "-require=k8s.io/"+library+"@"+version)
	}
	return edits
}

// ClusterAPI is the part of Cluster API by which all of its controllers reach workload clusters,
// with a main package of ours, since the controllers themselves want machines.
func ClusterAPI() Tool {
	return Tool{
		Name: "cluster-api-probe", Module: "sigs.k8s.io/cluster-api", Version: "v1.13.6",
		Sum:     "h1:imZVIstbRIq2DoKftQv0wPm+vyhWXrE3Zft8E43maqo=",
		Package: "./cmd/postern-probe",
		Edits:   append(kubernetes(), "-require=k8s.io/apiextensions-apiserver@v0.37.1", "-require=sigs.k8s.io/controller-runtime@v0.25.2"),
		Stub:    "cluster-api",
	}
}

// KustomizeController is the controller of Flux that applies what sources have.
func KustomizeController() Tool {
	return Tool{
		Name: "kustomize-controller", Module: "github.com/fluxcd/kustomize-controller", Version: "v1.9.5",
		Sum:     "h1:/XY2zy3K7fntyppEXIHG7oRMzmfgIt50eJzUfaPX1Kc=",
		Package: ".",
		// Its API is a module of its own, which was published beside it.
		Edits: []string{"-dropreplace=github.com/fluxcd/kustomize-controller/api"},
	}
}

// FluxSources has the definitions of Flux's sources. It is not built: the module proxy may lack one
// that it needs.
func FluxSources() Tool {
	return Tool{
		Name: "source-controller", Module: "github.com/fluxcd/source-controller", Version: "v1.9.5",
		Sum: "h1:MFPyCodUi9hZIMaKDsC/rYbNoyzpvrAdrPVixj7W9F0=",
	}
}

// CertManager has the definitions of cert-manager. It is not built: its programs are modules that
// nobody can get by their paths.
func CertManager() Tool {
	return Tool{
		Name: "cert-manager", Module: "github.com/cert-manager/cert-manager", Version: "v1.21.2",
		Sum: "h1:UWgoYM+KLNtRlqmoWOKjKBOBUPVHeepQ6/ac3ERJW68=",
	}
}

// OpenTofu is the program that applies what is written for Terraform.
func OpenTofu() Tool {
	return Tool{
		Name: "tofu", Module: "github.com/opentofu/opentofu", Version: "v1.12.6",
		Sum:     "h1:0VT4P8pMmGcCUnQ9JDrJ+Qg2d35Vzm4FFd/9+H7oF98=",
		Package: "./cmd/tofu",
	}
}

// KubectlProvider is a provider for OpenTofu that takes the arguments of the guide and calls a plugin with
// them. The module proxy has the guide's own in old versions only, which do not know the plugin's API.
func KubectlProvider() Tool {
	return Tool{
		Name: "terraform-provider-kubectl", Module: "github.com/gavinbunney/terraform-provider-kubectl", Version: "v1.19.0",
		Sum:     "h1:uqqh4oSPHS9+0zCyQlGCyCjMHHrvNz6Bfz3GfdzwB74=",
		Package: ".",
		// Newer libraries than its own, which are of 2024.
		Edits: require("v0.36.4", "api", "apimachinery", "client-go", "cli-runtime", "kube-aggregator", "kubectl"),
	}
}

// All are the programs that are built, in the order of what they are worth.
func All() []Tool {
	return []Tool{ProviderKubernetes(), ClusterAPI(), KustomizeController(), OpenTofu(), KubectlProvider()}
}
