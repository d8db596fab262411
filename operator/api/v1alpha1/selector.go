package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// PodSelector is a label selector of Kubernetes. It has bounds that Kubernetes' own has not, without
// which the API server could not look at what stands in it.
//
// +structType=atomic
// +kubebuilder:validation:XValidation:rule="(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",message="podSelector must specify at least one of matchLabels or matchExpressions; an empty selector would match all pods unintentionally."
type PodSelector struct {
	// MatchLabels are labels that a pod must have, all of them.
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	// +kubebuilder:validation:XValidation:rule="self.all(k, size(k) <= 317 && k.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))",message="a key of matchLabels is a label's key: up to 63 characters of a-z, A-Z, 0-9, '-', '_' and '.', with a domain and '/' before if need be, such as pkg.crossplane.io/provider."
	MatchLabels map[string]LabelValue `json:"matchLabels,omitempty"`
	// MatchExpressions are requirements that a pod must meet, all of them.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	MatchExpressions []SelectorRequirement `json:"matchExpressions,omitempty"`
}

// SelectorRequirement is what a label of a pod must be.
//
// +kubebuilder:validation:XValidation:rule="self.operator in ['In', 'NotIn', 'Exists', 'DoesNotExist']",message="an operator of matchExpressions is In, NotIn, Exists or DoesNotExist."
// +kubebuilder:validation:XValidation:rule="!(self.operator in ['In', 'NotIn']) || has(self.values) && size(self.values) > 0",message="the operators In and NotIn of matchExpressions need values, such as values: [a, b]."
// +kubebuilder:validation:XValidation:rule="!(self.operator in ['Exists', 'DoesNotExist']) || !has(self.values) || size(self.values) == 0",message="the operators Exists and DoesNotExist of matchExpressions take no values."
type SelectorRequirement struct {
	// Key of the label.
	// +required
	// +kubebuilder:validation:MaxLength=317
	// +kubebuilder:validation:XValidation:rule="self.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$')",message="a key of matchExpressions is a label's key: up to 63 characters of a-z, A-Z, 0-9, '-', '_' and '.', with a domain and '/' before if need be, such as pkg.crossplane.io/provider."
	Key string `json:"key"`
	// Operator is In, NotIn, Exists or DoesNotExist.
	// +required
	Operator metav1.LabelSelectorOperator `json:"operator"`
	// Values that In allows and NotIn does not.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Values []LabelValue `json:"values,omitempty"`
}

// LabelValue is the value of a label.
//
// +kubebuilder:validation:MaxLength=63
// +kubebuilder:validation:XValidation:rule="self.matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$')",message="a label's value has up to 63 characters of a-z, A-Z, 0-9, '-', '_' and '.', with a letter or digit at either end."
type LabelValue string

// LabelSelector returns the selector as Kubernetes has it.
func (s *PodSelector) LabelSelector() *metav1.LabelSelector {
	all := &metav1.LabelSelector{}
	if len(s.MatchLabels) > 0 {
		all.MatchLabels = make(map[string]string, len(s.MatchLabels))
	}
	for key, value := range s.MatchLabels {
		all.MatchLabels[key] = string(value)
	}
	for _, e := range s.MatchExpressions {
		one := metav1.LabelSelectorRequirement{Key: e.Key, Operator: e.Operator}
		for _, value := range e.Values {
			one.Values = append(one.Values, string(value))
		}
		all.MatchExpressions = append(all.MatchExpressions, one)
	}
	return all
}
