package wire

import "strings"

// Clip shortens a text from outside that logs and errors repeat: to most bytes, with a sign where
// it was cut. What is not UTF-8 in it becomes a question mark.
func Clip(s string, most int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
