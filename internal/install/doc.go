// Package install renders the embedded Helm charts to manifests, for those who have no Helm. It
// knows of Helm what the charts use: values with a schema, templates with sprig, hooks, and the
// order in which kinds are installed. What it writes is what helm template writes, byte for byte;
// a test of module test/charts holds it to that.
package install
