// Package crds holds the definitions of the operator's resources, and the role that the operator
// needs, as the sources say them. The chart postern-operator has the same definitions.
package crds

import "embed"

//go:generate go tool controller-gen object paths=../v1alpha1 paths=../upbound/v1alpha1
//go:generate go tool controller-gen crd:maxDescLen=400 paths=../v1alpha1 paths=../upbound/v1alpha1 output:crd:dir=.
//go:generate go tool controller-gen rbac:roleName=postern-operator,fileName=role.yaml paths=../../controller output:rbac:dir=.
//go:generate go run ../genchart ../../..

// Files are the generated files: one of each definition, and role.yaml.
//
//go:embed *.yaml
var Files embed.FS
