package login

import (
	"os"
	"runtime"
)

// clientName tells people which of their sessions this one is.
func clientName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "?"
	}
	return "postern on " + host + " (" + runtime.GOOS + ")"
}
