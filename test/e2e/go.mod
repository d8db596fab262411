// The end-to-end tests stand alone: they know Postern only by its programs, as
// a user does, and use nothing but the standard library.
module postern.dev/postern/test/e2e

go 1.26.0
