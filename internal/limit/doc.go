// Package limit bounds what an organization, an agent or a proxy may use: streams
// at once, opens per second, bytes per second, and some things that only an
// organization has. It holds the values that people set, counts what is in use, and
// makes bytes wait. It does no I/O: hub, relay and agent ask it.
//
// What is used belongs to up to three at once: a proxy, an agent, and their
// organization. Each has a Meter, and all of them have to admit. A Book keeps the
// meters and the values; a Use is one stream or pipe that was admitted.
package limit
