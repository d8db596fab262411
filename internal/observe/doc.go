// Package observe lets people see what a process of Postern does: logs,
// metrics, health and the identifiers of traces. Every role uses it; it knows
// none of them.
//
//   - NewLogger makes the *slog.Logger that is passed to everything else.
//   - NewRegistry makes a registry of metrics of its own, and Streams, Pipes,
//     Uplink, Relay and Hub are the sets of metrics that a role counts with. A
//     nil set counts nothing, so that code and tests need no registry.
//   - Health answers /healthz and /readyz from the checks that a role registers;
//     a readiness check should send a byte through the data path, since a
//     connection that is open may still be dead.
//   - Server serves metrics and health until its context ends.
//   - Trace is the W3C trace context that OPEN frames carry; nothing exports
//     spans yet.
package observe
