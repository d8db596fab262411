module postern.dev/postern/test/kube

go 1.26.0

require golang.org/x/sys v0.49.0

require golang.org/x/sync v0.24.0

replace postern.dev/postern => ../..
