// Package issuer makes identity tokens for the providers that run in control planes,
// and serves what relying parties verify them with: it is an OpenID provider with a
// discovery document and a set of keys, and nothing else. A cloud, or an API server,
// that trusts the issuer lets a provider in without any stored credential.
//
// An Issuer signs and publishes; a hub has one when it is given an issuer URL. A Server
// is an issuer as a process of its own, which gives tokens to workloads of clusters that
// it trusts. Where keys are kept is a Keys: a Folder that belongs to the issuer, or a
// Mounted one, such as a Kubernetes Secret, that somebody else changes.
//
// Keys follow each other by a Schedule. One is published before it signs, so that
// relying parties which ask for keys seldom have it by then, and stays published until
// the last token that it signed has expired. A key that was stolen is withdrawn at once.
package issuer
