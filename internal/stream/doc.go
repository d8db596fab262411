// Package stream makes conversations with targets out of pipes. A Stream is a
// net.Conn with half-close that borrows a pipe (package pipe) while it lasts: the
// proxy opens it (Open), the agent accepts it (Accept) and reaches the target. When
// both directions have ended properly the pipe is free for the next stream.
//
// Carry joins a stream to a local connection and is where nearly every byte goes:
// it borrows memory only while bytes move, copies each byte once, and tells an end
// (FIN) from a reset (RST) on both sides.
package stream
