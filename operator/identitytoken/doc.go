// Package identitytoken gives pods identity tokens of an issuer: short-lived tokens by which a
// cloud or an API server knows a provider without any stored credential.
//
// [WantOf] is pure: it says which token a pod asks for. [Step] mounts it when the pod is made.
// [Keeper] keeps the Secrets that are mounted: it asks the issuer for a token per namespace,
// name and audience, renews it at half of its life, and deletes what no pod mounts any more. The
// kubelet swaps the file in the pod, so nothing restarts.
package identitytoken
