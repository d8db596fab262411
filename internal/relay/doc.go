// Package relay is the one port, and the place where proxies and agents meet.
//
// A Relay accepts TLS 1.3 and routes each connection by the application protocol
// that it asks for (package wire): to the bus, to the hub's HTTPS, or to the
// rendezvous. There two parties present the same one-time ticket, both leave their
// TLS at the end of its last record, and the relay moves bytes between the bare
// sockets in the kernel. What passes is encrypted from end to end; the relay knows
// who speaks with whom, and can only deny service.
//
// Before a caller has proved who it is, the time that it gets, the memory that it
// costs and the number of its connections are bounded.
package relay
