package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Proxy routes pods of this cluster to a private network. For each, the operator runs a proxy that
// reaches the agent of the private network through a hub, and points the pods that it selects to it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=proxies,singular=proxy,scope=Namespaced,shortName=px,categories=postern
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 57",message="a Proxy's name has at most 57 characters of a-z, 0-9 and '-', begins with a letter and does not end with '-': the Service NAME-proxy is named after it."
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Agent ID",type=string,JSONPath=`.status.agentID`,priority=1
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Proxy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec ProxySpec `json:"spec"`
	// +optional
	Status ProxyStatus `json:"status,omitempty"`
}

// ProxyList is a list of Proxy.
//
// +kubebuilder:object:root=true
type ProxyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Proxy `json:"items"`
}

// ProxySpec says what a Proxy is for: what both API groups have in common, and where the hub is.
type ProxySpec struct {
	CommonSpec `json:",inline"`

	// Hub is where the hub of this Proxy is. What it leaves out is the operator's own.
	// +optional
	Hub *Hub `json:"hub,omitempty"`
}

// CommonSpec is what a Proxy of either API group says.
//
// +kubebuilder:validation:XValidation:rule="!has(self.agentID) || !has(self.agentId) || self.agentID == self.agentId",message="agentID and agentId are two spellings of one field; set one of them, or both to the same value."
type CommonSpec struct {
	// Description is for people.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Description string `json:"description,omitempty"`

	// SecretRef names the Secret, in the Proxy's namespace, that holds a robot's token.
	// +required
	SecretRef SecretKeyRef `json:"secretRef"`

	// AgentID is the agent to reach. Without it, one is made up and written to the status. Proxies
	// in several clusters may share one agent.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="an agent's ID has 1 to 63 characters of a-z, 0-9 and '-', with none of '-' at either end; a UUID is one."
	AgentID string `json:"agentID,omitempty"`

	// AgentId is another spelling of agentID.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="an agent's ID has 1 to 63 characters of a-z, 0-9 and '-', with none of '-' at either end; a UUID is one."
	AgentId string `json:"agentId,omitempty"` // the documents spell it both ways

	// PodSelector selects the pods that are pointed to the proxy.
	// +required
	PodSelector PodSelector `json:"podSelector"`
}

// SecretKeyRef names a key of a Secret in the same namespace.
type SecretKeyRef struct {
	// Name of the Secret.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",message="a Secret's name has characters of a-z, 0-9, '-' and '.', with a letter or digit at either end; the token itself does not stand here."
	Name string `json:"name"`
	// Key in the Secret.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[-._a-zA-Z0-9]+$') && !self.startsWith('..') && self != '.'",message="a key of a Secret has characters of a-z, A-Z, 0-9, '-', '_' and '.', such as token."
	Key string `json:"key"`
}

// Hub says where a hub is and which organization to work for.
type Hub struct {
	// ConnectURL is the hub's address: tls://HOST[:4222] or wss://HOST[:443].
	// +optional
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:XValidation:rule="self.matches('^(tls|https)://[^/@?#:% ]+(:[0-9]{1,5})?/?$') || self.matches('^(tls|https)://[[][0-9A-Fa-f:.]+[]](:[0-9]{1,5})?/?$') || self.matches('^wss://[^/@?# ]+(/[^?# ]*)?$')",message="connectUrl is tls://HOST or tls://HOST:PORT, for example tls://hub.example.org:4222, or wss://HOST where only web traffic passes."
	// +kubebuilder:validation:XValidation:rule="!isURL(self) || url(self).getPort() == '' || size(url(self).getPort()) <= 5 && int(url(self).getPort()) >= 1 && int(url(self).getPort()) <= 65535",message="the port of connectUrl is a number from 1 to 65535."
	ConnectURL string `json:"connectUrl,omitempty"`
	// Organization to work for.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="an organization's name has 1 to 63 characters of a-z, 0-9 and '-', with none of '-' at either end."
	Organization string `json:"organization,omitempty"`
	// CABundle is the hub's CA certificate in PEM. Without it and the operator's own, the CAs of
	// the proxy's image are trusted.
	// +optional
	// +kubebuilder:validation:MaxLength=65536
	// +kubebuilder:validation:XValidation:rule="self.contains('-----BEGIN CERTIFICATE-----')",message="caBundle is the text of certificates in PEM: it begins with -----BEGIN CERTIFICATE-----."
	// +kubebuilder:validation:XValidation:rule="!self.contains('PRIVATE KEY')",message="caBundle holds a private key: give the certificate alone, and replace that key."
	CABundle string `json:"caBundle,omitempty"`
}

// Phase is how a Proxy is, in one word.
//
// +kubebuilder:validation:Enum=WaitingForProxy;Connected;Disconnected
type Phase string

// The phases.
const (
	PhaseWaitingForProxy Phase = "WaitingForProxy" // the agent has not been connected yet
	PhaseConnected       Phase = "Connected"       // the agent is connected and the proxy reaches it
	PhaseDisconnected    Phase = "Disconnected"    // the agent was connected, and is not now
)

// ConditionReady is the type of the condition that says whether pods reach the private network.
const ConditionReady = "Ready"

// ProxyStatus is how a Proxy of either API group is.
type ProxyStatus struct {
	// AgentID is the agent in effect: that of the spec, or one that was made up.
	// +optional
	AgentID string `json:"agentID,omitempty"`
	// Phase is how it is, in one word.
	// +optional
	Phase Phase `json:"phase,omitempty"`
	// Conditions say more.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// LastAppliedPodSelector is the selector for which the pods were last brought up to date.
	// +optional
	LastAppliedPodSelector *metav1.LabelSelector `json:"lastAppliedPodSelector,omitempty"`
	// ObservedGeneration is the generation of the spec that the status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Replicas are those of the agent that are connected.
	// +optional
	// +listType=map
	// +listMapKey=name
	Replicas []AgentReplica `json:"replicas,omitempty"`
	// ReadyProxies is how many proxy pods are ready.
	// +optional
	ReadyProxies int32 `json:"readyProxies,omitempty"`
	// LastError is the last failure that the agent or the operator told of, for people.
	// +optional
	LastError string `json:"lastError,omitempty"`
}

// AgentReplica is one connected process of an agent.
type AgentReplica struct {
	// Name of the replica.
	Name string `json:"name"`
	// Version of the agent.
	// +optional
	Version string `json:"version,omitempty"`
	// RoundTripTime from the replica to the hub, such as 12ms.
	// +optional
	RoundTripTime string `json:"roundTripTime,omitempty"`
}
