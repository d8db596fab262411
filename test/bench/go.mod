module postern.dev/postern/test/bench

go 1.26.0

replace postern.dev/postern => ../..

require (
	github.com/coder/websocket v1.8.15
	github.com/hashicorp/yamux v0.1.2
	postern.dev/postern v0.0.0-00010101000000-000000000000
)
