// Package gateway is the hub's side of the gateway: https://HUB/CLUSTER/PATH is the
// API server of a private cluster, or a service in it, as the caller and nobody else.
//
// A request goes these steps, and ends at the first that refuses it: its URL is read
// (package kubeurl); one of the Authenticators says who makes it, and whom the cluster
// is to see; the Hub says which organization is meant and whether access grants let
// the caller in; limits say whether there is room. Then the hub gives its word for
// this one request (package assertion), and the request goes to the agent over a
// stream that was opened before: one exchange.Client for each cluster, whose
// connections are streams. The agent verifies, judges by itself, and asks its API
// server with its own service account in the caller's name. So no credential of the
// cluster leaves it, and none of the caller's gets there.
//
// A request that runs is cut when what let it in ends: the session or token, the
// access grant, the role.
package gateway
