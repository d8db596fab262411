// Package v1alpha1 holds the Kubernetes types of group spaces.upbound.io, version v1alpha1, which
// the operator serves with compatibility on: manifests that were written for it work unchanged.
//
// +kubebuilder:object:generate=true
// +groupName=spaces.upbound.io
package v1alpha1
