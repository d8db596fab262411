// Package impersonate is the agent's end of the gateway: an HTTP server that listens on
// nothing. Streams from the hub are its connections, and each request on them carries
// the hub's word for who asks (package assertion).
//
// The server verifies that word, asks a Judge (the owner's rules and the hub's access
// grants), takes out of the request whatever else could name somebody, and sends it
// to the cluster's API server with the agent's own service account, as the user that
// the hub vouches for. So RBAC of the cluster decides what the user may do, and no
// credential of the cluster leaves it. When a caller wishes to be somebody else
// (kubectl --as), the cluster itself is asked whether he may. A request may also go to
// a service of the cluster.
package impersonate
