// Package wire holds what travels between Postern's parties: the frames of a
// pipe, the messages by which two parties meet at a relay, the names of targets,
// and the failures that cross the network. It does no I/O and imports nothing of
// Postern's, so that every other package can speak of these things.
//
// All integers are big-endian. Everything a decoder accepts is bounded by the
// constants of this package, and every decoder is fuzzed.
package wire

// The application protocols (RFC 7301) of the one port and of what runs inside a
// pipe. HTTP's own identifiers, "h2" and "http/1.1", lead to the hub's API.
const (
	ALPNBus    = "postern-bus/1"    // NATS client protocol
	ALPNPipe   = "postern-pipe/1"   // one JOIN, then whatever the two parties say
	ALPNStream = "postern-stream/1" // the inner TLS of a pipe: frames
)

// DefaultPort is the TCP port of a connect URL that names none.
const DefaultPort = 4222
