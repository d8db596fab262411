// Package exchange is a client of HTTP/1.1 for one server, that works in the goroutine
// of whoever asks: it writes the request, and reads the answer, itself. A connection
// that waits, for the next request or for more of an answer, has no goroutine and
// little memory; nor does anybody have to be woken up on the way of a request. The
// standard library's http.Transport has two goroutines for each connection, and hands
// each request and answer from one to the next.
//
// Bytes on the wire are the standard library's: http.Request.Write writes requests,
// http.ReadResponse reads answers.
package exchange
