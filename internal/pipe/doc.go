// Package pipe makes and keeps pipes: TCP connections from a proxy to an agent
// that were joined at a relay and are encrypted from end to end.
//
// A pipe comes about in two steps. Join dials the relay, proves who calls by mutual
// TLS (the outer TLS), presents a one-time ticket, and leaves that TLS at exactly
// the end of its last record; what is left is a bare connection to the other
// bearer of the ticket. Client and Server then run the inner TLS over it, in which
// each side insists on the other's identity. From there on a Pipe carries frames
// (package wire), one stream at a time (package stream).
//
// A Pool keeps pipes to one agent replica warm. A Keeper watches every pipe of a
// process: it sends signs of life, and gives up pipes whose other side has fallen
// silent.
package pipe
