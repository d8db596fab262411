package proxy

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"postern.dev/postern/internal/wire"
)

// SOCKS5 is a front end for clients of SOCKS 5 proxies (RFC 1928), with user
// name and password (RFC 1929). It serves CONNECT; names are resolved at the
// agent. A password has at most 255 bytes there, which some robot tokens exceed.
type SOCKS5 struct {
	*Server
	preludes *sync.Pool
}

// NewSOCKS5 returns a front end on ln. It refuses a listener that others can
// reach and that has no credentials.
func NewSOCKS5(ln net.Listener, access *Access, cfg FrontConfig) (*SOCKS5, error) {
	s, err := newServer(FrontSOCKS5, ln, access, cfg)
	if err != nil {
		return nil, err
	}
	out := &SOCKS5{Server: s, preludes: newPreludePool()}
	s.serve, s.refuse = out.serveClient, refuseSOCKS
	return out, nil
}

// The numbers of RFC 1928 and RFC 1929.
const (
	socksVersion     = 5
	socksAuthVersion = 1

	methodNone     = 0x00
	methodPassword = 0x02
	methodRefused  = 0xff

	commandConnect = 1

	addressIPv4 = 1
	addressName = 3
	addressIPv6 = 4
)

func refuseSOCKS(conn net.Conn, _ *wire.Failure) {
	_ = conn.SetWriteDeadline(time.Now().Add(lingerTime))
	_, _ = conn.Write([]byte{socksVersion, methodRefused}) // no method is acceptable now
	_ = conn.Close()
}

// errHungUp means that the client is gone, so that nobody is to be told.
var errHungUp = errors.New("the client hung up")

func (s *SOCKS5) serveClient(c *client) {
	defer c.Close()
	p := newPrelude(c.Conn, s.preludes)
	defer p.release()
	_ = c.SetDeadline(time.Now().Add(s.cfg.HeaderTimeout))

	l, err := s.negotiate(p)
	if err != nil {
		s.end(c, err)
		return
	}
	g, f := s.login(s.ctx, l)
	if l.Given {
		status := byte(0)
		if f != nil {
			status = 1
		}
		if _, err := c.Conn.Write([]byte{socksAuthVersion, status}); err != nil {
			return
		}
	}
	if f != nil {
		s.refused(c, route{}, f)
		part(c.Conn, nil)
		return
	}
	host, port, err := s.request(p)
	if err != nil {
		s.end(c, err)
		return
	}
	_ = c.SetDeadline(time.Time{})
	if !c.said() {
		return
	}
	early := p.rest()
	p.release()
	s.connect(c, g, host, port, early)
}

// end tells of an error of the negotiation, if there is anybody to tell.
func (s *SOCKS5) end(c *client, err error) {
	if f, ok := errors.AsType[*wire.Failure](err); ok {
		s.refused(c, route{}, f)
		part(c.Conn, nil)
	}
}

func (s *SOCKS5) connect(c *client, g grant, host string, port uint16, early []byte) {
	r, f := s.find(g, host, port)
	if f != nil {
		s.refused(c, r, f)
		part(c.Conn, reply(socksReply(f)))
		return
	}
	stream, f := s.open(s.ctx, c, r, nil)
	if f != nil {
		part(c.Conn, reply(socksReply(f)))
		return
	}
	if _, err := c.Conn.Write(reply(socksSucceeded)); err != nil {
		_ = stream.Close()
		s.ended(c, r, Stats{}, 0, wire.Fail(wire.LegClient, wire.CodeReset, "the client left before its stream was open").WithCause(err))
		return
	}
	s.carry(c, r, stream, early)
}

// reply returns a reply with no bound address: it means nothing here.
func reply(code byte) []byte {
	return []byte{socksVersion, code, 0, addressIPv4, 0, 0, 0, 0, 0, 0}
}

// negotiate reads the greeting, answers it, and reads the login if there is
// one. Where none is required, one is still taken if offered: its user name
// routes. A *wire.Failure has been answered already.
func (s *SOCKS5) negotiate(p *prelude) (Login, error) {
	head, err := p.peek(2)
	if len(head) > 0 && head[0] != socksVersion {
		return Login{}, s.wrongVersion(p, head[0])
	}
	if err != nil {
		return Login{}, errHungUp
	}
	n := int(head[1])
	greeting, err := p.peek(2 + n)
	if err != nil {
		return Login{}, errHungUp
	}
	var none, password bool
	for _, m := range greeting[2:] {
		none = none || m == methodNone
		password = password || m == methodPassword
	}
	p.skip(2 + n)
	switch {
	case password:
		if _, err := p.conn.Write([]byte{socksVersion, methodPassword}); err != nil {
			return Login{}, errHungUp
		}
		return readLogin(p)
	case none && !s.required:
		if _, err := p.conn.Write([]byte{socksVersion, methodNone}); err != nil {
			return Login{}, errHungUp
		}
		return Login{}, nil
	}
	_, _ = p.conn.Write([]byte{socksVersion, methodRefused})
	if s.required {
		return Login{}, unauthenticated("the client does not offer a user name and password")
	}
	return Login{}, badRequest("the client offers no method of authentication that is known")
}

// wrongVersion answers a client that does not speak SOCKS 5 in its own words.
func (s *SOCKS5) wrongVersion(p *prelude, version byte) error {
	switch {
	case version == 4:
		_, _ = p.conn.Write([]byte{0, 0x5b, 0, 0, 0, 0, 0, 0}) // "request rejected or failed"
		return badRequest("the client speaks SOCKS 4, which cannot carry names").WithHint("use SOCKS 5")
	case 'A' <= version && version <= 'Z':
		f := badRequest("this is a SOCKS 5 proxy and not an HTTP proxy").WithHint("write the proxy's address as socks5h://HOST:PORT")
		_, _ = p.conn.Write(answerFor(f, wire.Target{}).response(f))
		return f
	default:
		return badRequest("the client does not speak SOCKS 5")
	}
}

// readLogin reads the request of RFC 1929.
func readLogin(p *prelude) (Login, error) {
	refuse := func(text string) (Login, error) {
		_, _ = p.conn.Write([]byte{socksAuthVersion, 1})
		return Login{}, badRequest("%s", text)
	}
	b, err := p.peek(2)
	if err != nil {
		return Login{}, errHungUp
	}
	if b[0] != socksAuthVersion {
		return refuse("the login's version is unknown")
	}
	users := int(b[1])
	if b, err = p.peek(2 + users + 1); err != nil {
		return Login{}, errHungUp
	}
	passwords := int(b[2+users])
	if b, err = p.peek(2 + users + 1 + passwords); err != nil {
		return Login{}, errHungUp
	}
	l := Login{User: string(b[2 : 2+users]), Password: string(b[3+users:]), Given: true}
	p.skip(len(b))
	if !isUserText(l.User) || !isUserText(l.Password) {
		return refuse("the user name or password is not text")
	}
	return l, nil
}

// request reads the request proper. A *wire.Failure has been answered already.
func (s *SOCKS5) request(p *prelude) (host string, port uint16, err error) {
	refuse := func(code byte, text string) (string, uint16, error) {
		_, _ = p.conn.Write(reply(code))
		return "", 0, badRequest("%s", text)
	}
	b, err := p.peek(5)
	if err != nil {
		return "", 0, errHungUp
	}
	var size int
	switch {
	case b[0] != socksVersion || b[2] != 0:
		return refuse(socksGeneral, "the request is malformed")
	case b[1] != commandConnect:
		return refuse(socksBadCommand, "only the command CONNECT is served, not BIND or UDP ASSOCIATE")
	case b[3] == addressIPv4:
		size = 4
	case b[3] == addressIPv6:
		size = 16
	case b[3] == addressName:
		size = 1 + int(b[4])
	default:
		return refuse(socksBadAddress, "the type of address is unknown")
	}
	if b, err = p.peek(4 + size + 2); err != nil {
		return "", 0, errHungUp
	}
	address := b[4 : 4+size]
	port = binary.BigEndian.Uint16(b[4+size:])
	switch b[3] {
	case addressIPv4:
		host = netip.AddrFrom4([4]byte(address)).String()
	case addressIPv6:
		host = netip.AddrFrom16([16]byte(address)).String()
	default:
		host = string(address[1:])
	}
	p.skip(4 + size + 2)
	// Control characters would otherwise travel into logs, and a NUL could end
	// a name early for some other reader.
	if host, err = wire.NormalizeHost(host); err != nil {
		return refuse(socksGeneral, err.Error())
	}
	if port == 0 {
		return refuse(socksGeneral, "port 0 is not a port to connect to")
	}
	return host, port, nil
}
