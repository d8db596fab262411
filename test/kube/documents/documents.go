// Package documents has what the Private Network Agent's own documents write, to the letter, for
// the tests that a Proxy of theirs works here as it stands.
package documents

// Proxy is their Proxy.
const Proxy = `apiVersion: spaces.upbound.io/v1alpha1
kind: Proxy
metadata:
  name: private-cluster
  namespace: default
spec:
  secretRef:
    name: robot-token
    key: token
  podSelector:
    matchLabels:
      pkg.crossplane.io/provider: provider-kubernetes
`
