package config

import "log/slog"

// mask is what is shown in the place of a secret.
const mask = "********"

// Secret is a text that must not be shown: however it is printed, logged or
// marshalled, asterisks come out. Reveal returns the text itself.
type Secret string

// Reveal returns the secret itself, for the one place that sends it.
func (s Secret) Reveal() string { return string(s) }

// String returns asterisks, or "" if there is no secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return mask
}

// GoString returns what String returns, so that %#v does not show the secret.
func (s Secret) GoString() string { return s.String() }

// MarshalText returns what String returns, so that JSON and YAML do not show the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue returns what String returns, for log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
