// Package identity names the parties of Postern and proves who they are: SPIFFE
// IDs, the hub's certificate authority, short-lived certificates, the inner TLS
// of pipes, and robot tokens. It does no I/O; the hub mints with it, and every
// role verifies with it.
//
// A certificate authority speaks for one trust domain. A certificate is believed
// only when its chain ends at an authority whose own SPIFFE ID is the trust
// domain of the leaf, so that two hubs' authorities in one pool cannot speak
// for each other.
package identity
