module postern.dev/postern/test/guides

go 1.26.0

require (
	postern.dev/postern v0.0.0
	postern.dev/postern/test/kube v0.0.0
)

require (
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace (
	postern.dev/postern => ../..
	postern.dev/postern/dialer/kube => ../../dialer/kube
	postern.dev/postern/test/kube => ../kube
)
