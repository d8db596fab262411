package kubeconfig

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"postern.dev/postern/internal/wire"
)

// The versions of the plugins' protocol that are spoken.
const (
	apiV1      = "client.authentication.k8s.io/v1"
	apiV1Beta1 = "client.authentication.k8s.io/v1beta1"

	kindExecCredential = "ExecCredential"
)

// ExecInfoVariable is the environment variable in which a client tells its plugin
// what it is asked for.
const ExecInfoVariable = "KUBERNETES_EXEC_INFO"

// maxExecInfo bounds it, in bytes. Linux has a bound of 128 KiB of its own.
const maxExecInfo = 1 << 20

// ExecInfo is what a client asks of a plugin.
type ExecInfo struct {
	version string
	Server  string // of the cluster; empty if the client did not tell
}

// execCredential is the object of client.authentication.k8s.io both ways.
type execCredential struct {
	APIVersion string      `json:"apiVersion"`
	Kind       string      `json:"kind"`
	Spec       execSpec    `json:"spec"`
	Status     *execStatus `json:"status,omitempty"`
}

type execSpec struct {
	Interactive bool         `json:"interactive"`
	Cluster     *execCluster `json:"cluster,omitempty"`
}

type execCluster struct {
	Server string `json:"server"`
}

type execStatus struct {
	Expires string `json:"expirationTimestamp,omitempty"`
	Token   string `json:"token"`
}

// ParseExecInfo reads what a client asks of its plugin. An empty text is a person who
// calls the plugin by hand.
func ParseExecInfo(text string) (ExecInfo, error) {
	if text == "" {
		return ExecInfo{version: apiV1}, nil
	}
	var c execCredential
	if len(text) > maxExecInfo {
		return ExecInfo{}, badExecInfo("it has %d bytes", len(text))
	}
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return ExecInfo{}, badExecInfo("it is not the JSON of an ExecCredential")
	}
	if c.Kind != kindExecCredential || c.APIVersion != apiV1 && c.APIVersion != apiV1Beta1 {
		return ExecInfo{}, badExecInfo("it is %.60q of %.60q; want ExecCredential of %s", c.Kind, c.APIVersion, apiV1)
	}
	info := ExecInfo{version: c.APIVersion}
	if c.Spec.Cluster != nil {
		info.Server = c.Spec.Cluster.Server
	}
	return info, nil
}

func badExecInfo(format string, args ...any) *wire.Failure {
	return wire.Fail(wire.LegClient, wire.CodeBadRequest, "%s cannot be used: %s", ExecInfoVariable, fmt.Sprintf(format, args...)).
		WithHint("this command is called by kubectl and programs like it; postern kubeconfig CLUSTER sets them up")
}

// WriteCredential answers a client with a token, which it asks for again when the
// token expires. Without an expiry it asks again when the token is refused.
func (i ExecInfo) WriteCredential(w io.Writer, token string, expires time.Time) error {
	c := execCredential{APIVersion: i.version, Kind: kindExecCredential, Status: &execStatus{Token: token}}
	if !expires.IsZero() {
		c.Status.Expires = expires.UTC().Format(time.RFC3339)
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(c); err != nil {
		return fmt.Errorf("write credential: %w", err)
	}
	return nil
}
