package proxy

import "testing"

// TestConnectTrace: the client's trace context goes along, and a bad one counts as
// none.
func TestConnectTrace(t *testing.T) {
	t.Parallel()
	const good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for value, want := range map[string]string{good: good, "00-0-0-00": "", "": ""} {
		req, f := parseConnect("CONNECT db:5432 HTTP/1.1\r\nHost: x\r\nTraceparent: " + value + "\r\n\r\n")
		if f != nil || req.trace.String() != want {
			t.Errorf("%q: %q, %v", value, req.trace.String(), f)
		}
	}
}
