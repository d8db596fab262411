// Package v1alpha1 holds the Kubernetes types of group postern.dev, version v1alpha1.
//
// +kubebuilder:object:generate=true
// +groupName=postern.dev
package v1alpha1
