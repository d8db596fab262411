// Package harness runs Postern's programs and the servers behind them as real
// processes for the end-to-end tests.
//
// Everything listens on loopback, keeps its files in the test's temporary
// directory, and is ended by its process ID when the test ends. A failing test
// prints the last lines of the log of every process it started.
package harness
