package inject

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Path is where the webhook is served.
const Path = "/pods"

// Bounds of the webhook.
const (
	maxReview   = 16 << 20        // bytes of a review: the API server takes objects of 3 MiB
	maxReviews  = 64              // at once; a further one waits
	patience    = 4 * time.Second // the API server's is 5, and it is to hear the reason
	maxWarnings = 16
	maxWarning  = 250 // bytes; the API server cuts longer ones
)

// Request is about one pod that is being made.
type Request struct {
	Namespace string      // the pod's; the pod itself may not say it
	Pod       *corev1.Pod // not to be changed
	DryRun    bool        // nothing is kept, and nothing may be written elsewhere
}

// Step changes pods in one respect. A failure leaves the pod as it is in that respect; its text is
// shown to whoever makes the pod. Plan is called concurrently.
type Step interface {
	Plan(ctx context.Context, r Request) (*Plan, error)
}

// Webhook is the http.Handler that the API server asks about pods. It takes its steps one after
// the other and never refuses a pod.
type Webhook struct {
	steps   []NamedStep
	metrics *Metrics
	log     *slog.Logger
	slots   chan struct{}
}

// NamedStep is a step and its name in metrics and warnings.
type NamedStep struct {
	Name string
	Step Step
}

// NewWebhook returns a webhook that takes steps in this order.
func NewWebhook(metrics *Metrics, log *slog.Logger, steps ...NamedStep) *Webhook {
	return &Webhook{steps: steps, metrics: metrics, log: log, slots: make(chan struct{}, maxReviews)}
}

// ServeHTTP answers one AdmissionReview. A request that is none is answered with status 400.
func (w *Webhook) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	select {
	case w.slots <- struct{}{}:
		defer func() { <-w.slots }()
	case <-ctx.Done():
		http.Error(rw, "too many reviews at once", http.StatusServiceUnavailable)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxReview))
	if err != nil {
		http.Error(rw, "read the review: "+err.Error(), http.StatusBadRequest)
		return
	}
	answer, err := w.Review(ctx, body)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	rw.Header().Set("Content-Type", "application/json")
	_, _ = rw.Write(answer)
}

// Review answers an AdmissionReview in JSON with another. It fails if there is nobody to answer:
// the bytes are not a review with a UID.
func (w *Webhook) Review(ctx context.Context, body []byte) ([]byte, error) {
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil {
		return nil, fmt.Errorf("read the review: %w", err)
	}
	if review.Request == nil || review.Request.UID == "" {
		return nil, errors.New("read the review: it has no request, or that no UID")
	}
	response := &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
	if operations := probed(review.Request); operations != nil {
		patch(response, operations)
	} else if concerns(review.Request) {
		w.change(ctx, review.Request, response)
	}
	return json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"},
		Response: response,
	})
}

// concerns reports whether a pod is being made: pods that are there cannot be changed any more.
func concerns(r *admissionv1.AdmissionRequest) bool {
	return r.Operation == admissionv1.Create && r.SubResource == "" &&
		r.Resource.Group == "" && r.Resource.Resource == "pods" && len(r.Object.Raw) > 0
}

// change takes the steps. Each sees the pod as the ones before it left it.
func (w *Webhook) change(ctx context.Context, r *admissionv1.AdmissionRequest, response *admissionv1.AdmissionResponse) {
	raw := r.Object.Raw
	var all []Operation
	for _, s := range w.steps {
		plan, changed, err := w.take(ctx, s, r, raw)
		if err != nil {
			w.metrics.count(s.Name, resultFailed)
			w.log.Warn("a pod was made without a step of the webhook", "step", s.Name, "namespace", r.Namespace, "pod", podName(r), "error", err)
			response.Warnings = append(response.Warnings, warning("postern: the pod was made without %s: %v", s.Name, err))
			continue
		}
		if plan == nil {
			w.metrics.count(s.Name, resultNone)
			continue
		}
		for _, text := range plan.Warnings {
			response.Warnings = append(response.Warnings, warning("postern: %s", text))
		}
		if len(plan.Operations) == 0 {
			w.metrics.count(s.Name, resultNone)
			continue
		}
		raw, all = changed, append(all, plan.Operations...)
		w.metrics.count(s.Name, resultChanged)
	}
	response.Warnings = response.Warnings[:min(len(response.Warnings), maxWarnings)]
	if len(all) > 0 {
		patch(response, all)
	}
}

// patch puts operations into a response.
func patch(response *admissionv1.AdmissionResponse, operations []Operation) {
	text, err := json.Marshal(operations)
	if err != nil {
		response.Warnings = append(response.Warnings, warning("postern: the object was left as it is: %v", err))
		return
	}
	kind := admissionv1.PatchTypeJSONPatch
	response.Patch, response.PatchType = text, &kind
}

// take asks one step, and applies its plan.
func (w *Webhook) take(ctx context.Context, s NamedStep, r *admissionv1.AdmissionRequest, raw []byte) (*Plan, []byte, error) {
	pod := &corev1.Pod{}
	if err := json.Unmarshal(raw, pod); err != nil {
		return nil, nil, fmt.Errorf("read the pod: %w", err)
	}
	plan, err := s.Step.Plan(ctx, Request{Namespace: r.Namespace, Pod: pod, DryRun: r.DryRun != nil && *r.DryRun})
	if err != nil || plan == nil || len(plan.Operations) == 0 {
		return plan, raw, err
	}
	changed, err := Apply(raw, plan.Operations)
	return plan, changed, err
}

// Apply returns an object in JSON with operations done to it.
func Apply(raw []byte, operations []Operation) ([]byte, error) {
	text, err := json.Marshal(operations)
	if err != nil {
		return nil, fmt.Errorf("write the operations: %w", err)
	}
	patch, err := jsonpatch.DecodePatch(text)
	if err != nil {
		return nil, fmt.Errorf("read the operations: %w", err)
	}
	changed, err := patch.Apply(raw)
	if err != nil {
		return nil, fmt.Errorf("change the object: %w", err)
	}
	return changed, nil
}

// podName names a pod for people: it may have no name yet.
func podName(r *admissionv1.AdmissionRequest) string {
	if r.Name != "" {
		return r.Name
	}
	var object struct {
		Metadata struct {
			GenerateName string `json:"generateName"`
		} `json:"metadata"`
	}
	_ = json.Unmarshal(r.Object.Raw, &object) // for people only
	return object.Metadata.GenerateName
}

func warning(format string, args ...any) string {
	text := fmt.Sprintf(format, args...)
	return strings.ToValidUTF8(text[:min(len(text), maxWarning)], "")
}
