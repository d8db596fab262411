// This module pins govulncheck. It stands alone so that its own dependencies never
// mix with Postern's.
module postern.dev/postern/tools/govulncheck

go 1.26.0

tool (
	golang.org/x/telemetry
	golang.org/x/vuln/cmd/govulncheck
)

require (
	golang.org/x/mod v0.41.0 // indirect
	golang.org/x/sync v0.23.0 // indirect
	golang.org/x/sys v0.48.0 // indirect
	golang.org/x/telemetry v0.0.0-20261009151841-97e8ea77aa2a // indirect
	golang.org/x/tools v0.50.0 // indirect
	golang.org/x/vuln v1.8.0 // indirect
)
