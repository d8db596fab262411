package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	postern "postern.dev/postern/operator/api/v1alpha1"
)

// Group is the API group of these types.
const Group = "spaces.upbound.io"

// Proxy is what postern.dev's Proxy is, without a hub of its own: the operator says where it is.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=proxies,singular=proxy,scope=Namespaced,shortName=px,categories=spaces
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 57",message="a Proxy's name has at most 57 characters of a-z, 0-9 and '-', begins with a letter and does not end with '-': the Service NAME-proxy is named after it."
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Agent ID",type=string,JSONPath=`.status.agentID`,priority=1
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Proxy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec postern.CommonSpec `json:"spec"`
	// +optional
	Status postern.ProxyStatus `json:"status,omitempty"`
}

// ProxyList is a list of Proxy.
//
// +kubebuilder:object:root=true
type ProxyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Proxy `json:"items"`
}

// GroupVersion is the group and version of these types.
func GroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: Group, Version: "v1alpha1"}
}

// AddToScheme makes the types known to a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion(), &Proxy{}, &ProxyList{})
	metav1.AddToGroupVersion(s, GroupVersion())
	return nil
}

// Common implements postern.Object.
func (p *Proxy) Common() *postern.CommonSpec { return &p.Spec }

// HubOverride implements postern.Object: this group has none.
func (p *Proxy) HubOverride() *postern.Hub { return nil }

// State implements postern.Object.
func (p *Proxy) State() *postern.ProxyStatus { return &p.Status }

// Objects implements postern.ObjectList.
func (l *ProxyList) Objects() []postern.Object {
	all := make([]postern.Object, len(l.Items))
	for i := range l.Items {
		all[i] = &l.Items[i]
	}
	return all
}
