package kube

import (
	"net/http"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport/spdy"
	httpspdy "k8s.io/streaming/pkg/httpstream/spdy"
)

// pingEvery is how often a connection of SPDY shows that it lives, as with client-go.
const pingEvery = 5 * time.Second

// RoundTripperFor is what spdy.RoundTripperFor of client-go is, for configurations of
// [Tunnel], too: exec, attach and port-forward open their connections with it, and with
// nothing else. It goes where client-go takes a round tripper and an upgrader:
// remotecommand.NewSPDYExecutorForTransports, and spdy.NewDialer for portforward.New.
//
// They speak SPDY then. The WebSockets of client-go cannot be told how to dial.
func RoundTripperFor(c *rest.Config) (http.RoundTripper, spdy.Upgrader, error) {
	if c.Dial == nil {
		return spdy.RoundTripperFor(c)
	}
	secure, err := rest.TLSConfigFor(c)
	if err != nil {
		return nil, nil, err
	}
	upgrade, err := httpspdy.NewRoundTripperWithConfig(httpspdy.RoundTripperConfig{
		PingPeriod: pingEvery, UpgradeTransport: &http.Transport{DialContext: c.Dial, TLSClientConfig: secure},
	})
	if err != nil {
		return nil, nil, err
	}
	wrapped, err := rest.HTTPWrappersForConfig(c, upgrade)
	if err != nil {
		return nil, nil, err
	}
	return wrapped, spdy.NewUpgraderForStreaming(upgrade), nil
}
