// Package proxy lets the programs of a control plane reach targets in private
// networks, without their knowing: as an HTTP proxy, as a SOCKS 5 proxy, or as a
// fixed port on this machine.
//
// It has two halves. The front ends (HTTP, SOCKS5, PortForward) speak with
// clients: they check credentials, find out which agent and target are meant,
// and explain failures. The Dialer opens the streams, over pipes to the agent's
// replicas that it keeps warm. Between them stands the interface Opener.
package proxy
