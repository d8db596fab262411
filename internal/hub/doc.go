// Package hub is the control side: the state directory that makes a hub the hub
// that it was, the token endpoint where parties get their credentials, the API
// for administrators, and what puts registry, bus, relay and proxies together
// in one process.
package hub
