// Package evict brings running pods up to date: those that a new or changed Proxy selects and that
// were not pointed to it when they were made, and those that were and are not selected any more.
// Pods cannot be changed, so that they are evicted, and whoever owns them makes new ones.
//
// What is to be done follows from the pods and Proxies alone, so that an operator that starts
// again goes on where it was. What [Evictor] remembers only slows it down: it waits for the new
// pod of an owner before it takes the owner's next one, and stops when new pods are no better.
package evict
