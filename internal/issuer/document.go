package issuer

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// The paths below the issuer's URL.
const (
	discoveryPath = "/.well-known/openid-configuration"
	keysPath      = "/.well-known/jwks"
)

// toldAge is how long relying parties are told to keep a document. Kubernetes does not look
// for a key that it does not know until half a minute before it is over: so it is short, for
// the first token after a key was withdrawn.
const toldAge = time.Minute

// document is what everybody may read.
type document struct {
	body []byte
	etag string
}

func newDocument(v any) (document, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return document{}, fmt.Errorf("encode document of the issuer: %w", err)
	}
	sum := sha256.Sum256(b)
	return document{body: append(b, '\n'), etag: `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`}, nil
}

// discovery is the discovery document (OpenID Connect Discovery 1.0 §3). Nobody signs in
// here, so it names no endpoint but that of the keys.
type discovery struct {
	Issuer        string   `json:"issuer"`
	JWKSURI       string   `json:"jwks_uri"`
	ResponseTypes []string `json:"response_types_supported"`
	SubjectTypes  []string `json:"subject_types_supported"`
	Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	Claims        []string `json:"claims_supported"`
}

// discoveryDocument says how tokens are verified that any of the keys signs or signed.
func discoveryDocument(url string, keys []Key) (document, error) {
	d := discovery{
		Issuer: url, JWKSURI: url + keysPath, ResponseTypes: []string{"id_token"}, SubjectTypes: []string{"public"},
		Claims: []string{"sub", "aud", "exp", "iat", "iss", "jti", "nbf"},
	}
	for _, k := range keys {
		if a := k.Type.Algorithm(); !slices.Contains(d.Algorithms, a) {
			d.Algorithms = append(d.Algorithms, a)
		}
	}
	return newDocument(d)
}

// keysDocument is the set of keys (RFC 7517 §5), without any private half.
func keysDocument(keys []Key) (document, error) {
	set := jose.JSONWebKeySet{Keys: make([]jose.JSONWebKey, 0, len(keys))}
	for _, k := range keys {
		set.Keys = append(set.Keys, k.jwk())
	}
	return newDocument(set)
}

// serve answers a request for a document.
func (d document) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		h.Set("Cache-Control", "no-store")
		http.Error(w, "only GET and HEAD are possible here", http.StatusMethodNotAllowed)
		return
	}
	h.Set("Cache-Control", "public, max-age="+strconv.Itoa(int(toldAge/time.Second)))
	h.Set("ETag", d.etag)
	if r.Header.Get("If-None-Match") == d.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(d.body)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(d.body) // the client is gone: there is nobody to tell
	}
}
