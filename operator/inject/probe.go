package inject

import (
	"encoding/json"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Annotations of a Proxy with which the operator finds out, in a dry run, whether the API server
// asks the webhook: it sets the first, and the webhook the second to the same value.
const (
	AnnotationProbe  = "proxy.postern.dev/probe"
	AnnotationProbed = "proxy.postern.dev/probed"
)

// probed answers a probe, or returns nil if a request is none. Nothing of it is kept.
func probed(r *admissionv1.AdmissionRequest) []Operation {
	if r.Operation != admissionv1.Update || r.DryRun == nil || !*r.DryRun || r.SubResource != "" || r.Resource.Resource != "proxies" {
		return nil
	}
	var o metav1.PartialObjectMetadata
	if err := json.Unmarshal(r.Object.Raw, &o); err != nil || o.Annotations[AnnotationProbe] == "" {
		return nil
	}
	return []Operation{{Op: "add", Path: "/metadata/annotations/" + escape(AnnotationProbed), Value: o.Annotations[AnnotationProbe]}}
}
