package observe

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Issuer counts what an issuer of identity tokens does.
type Issuer struct {
	registry  *Registry
	tokens    *prometheus.CounterVec
	documents *prometheus.CounterVec
}

// NewIssuer adds the metrics of an issuer to a registry.
func NewIssuer(r *Registry) *Issuer {
	return &Issuer{
		registry:  r,
		tokens:    r.counterVec("postern_issuer_tokens_total", "Identity tokens asked for, by outcome; ok counts those that were made.", "code"),
		documents: r.counterVec("postern_issuer_documents_total", "Requests for the documents that tokens are verified with: discovery or keys.", "document"),
	}
}

// Watch makes the keys visible: how many there are by phase, and for how long the one
// that signs has done so. Call it at most once. The functions are called whenever metrics
// are collected, concurrently.
func (i *Issuer) Watch(keys func() map[string]int, age func() time.Duration) {
	if i == nil {
		return
	}
	for phase := range keys() {
		i.registry.gaugeFunc("postern_issuer_keys", "Signing keys of the issuer, by phase: published, signing or retiring.",
			func() float64 { return float64(keys()[phase]) }, prometheus.Labels{"phase": phase})
	}
	i.registry.gaugeFunc("postern_issuer_signing_key_age_seconds", "For how long the key that signs has done so; 0 where that is not known.",
		func() float64 { return age().Seconds() }, nil)
}

// Minted counts a token that was made, or that was not for an error.
func (i *Issuer) Minted(err error) {
	if i != nil {
		i.tokens.WithLabelValues(code(err)).Inc()
	}
}

// Served counts a request for one of the documents.
func (i *Issuer) Served(document string) {
	if i == nil {
		return
	}
	if !slices.Contains([]string{"discovery", "keys"}, document) {
		document = other
	}
	i.documents.WithLabelValues(document).Inc()
}
