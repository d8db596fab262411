package hub

import (
	"net/http"

	"postern.dev/postern/internal/gateway"
	"postern.dev/postern/internal/podcluster"
	"postern.dev/postern/internal/wire"
)

// askPod asks the API server of the cluster that the hub itself runs in, in a pod, with
// the hub's own service account.
func askPod(c *podcluster.Cluster) gateway.Asker {
	return func(r *http.Request) (*http.Response, error) {
		if !c.There() {
			return nil, wire.Fail(wire.LegHub, wire.CodeUnreachable, "the hub does not run in a Kubernetes pod").
				WithHint("name an agent of the cluster: --gateway-token-cluster NAME=ORG:AGENT")
		}
		return c.Ask(r)
	}
}
