package v1alpha1

import (
	"cmp"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Group is the API group of these types.
const Group = "postern.dev"

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

// Object is a Proxy of any API group: what the controller, the webhook and the evictions work with.
//
// +kubebuilder:object:generate=false
type Object interface {
	client.Object
	// Common returns what all groups say, to be read only.
	Common() *CommonSpec
	// HubOverride returns where the hub of this Proxy is; nil: where the operator says.
	HubOverride() *Hub
	// State returns the status, to be changed in place.
	State() *ProxyStatus
}

// Common implements Object.
func (p *Proxy) Common() *CommonSpec { return &p.Spec.CommonSpec }

// HubOverride implements Object.
func (p *Proxy) HubOverride() *Hub { return p.Spec.Hub }

// State implements Object.
func (p *Proxy) State() *ProxyStatus { return &p.Status }

// Agent returns the agent's ID in whichever spelling it stands; "" if it is left to the operator.
func (c *CommonSpec) Agent() string { return cmp.Or(c.AgentID, c.AgentId) }

// Objects returns the Proxies of the list.
func (l *ProxyList) Objects() []Object {
	all := make([]Object, len(l.Items))
	for i := range l.Items {
		all[i] = &l.Items[i]
	}
	return all
}

// ObjectList is a list of Proxies of any API group.
//
// +kubebuilder:object:generate=false
type ObjectList interface {
	client.ObjectList
	// Objects returns the Proxies of the list; they are not copied.
	Objects() []Object
}
