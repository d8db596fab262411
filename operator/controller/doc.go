// Package controller makes Proxies work: for each it runs a proxy, asks the hub whether the agent is
// connected, and tells in the status how it is. One controller serves a Proxy of any API group.
//
// What it makes it applies with its own field manager, server-side, and never by force: a field
// that somebody else has set stays as it is, and a condition says so.
//
// [judge] is pure; it decides what a status says. [Reconciler] gathers the facts for it.
package controller
