// Package inject points pods to a proxy when they are made.
//
// [Plan] is pure: it says how a pod is changed, and changes nothing. [Webhook] answers the API
// server's question with it. Whatever goes wrong there, the pod is made: without a proxy and with a
// warning, and the evictor finds it later.
package inject
