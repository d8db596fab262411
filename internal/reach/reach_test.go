package reach_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/reach"
	"postern.dev/postern/internal/wire"
)

func allow(t *testing.T, kube *policy.KubernetesAPI, texts ...string) func() *policy.Policy {
	t.Helper()
	var rules []policy.Rule
	for _, s := range texts {
		r, err := policy.ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, r)
	}
	p := policy.New(rules, kube)
	return func() *policy.Policy { return p }
}

func target(t *testing.T, s string) wire.Target {
	t.Helper()
	out, err := wire.ParseTarget(s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// names is a resolver that answers from a list: each lookup takes the next
// answer of its name, the last one for ever.
type names struct {
	mu      sync.Mutex
	answers map[string][]string // comma-separated addresses
	asked   []string
	err     error
}

func (n *names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, host)
	if n.err != nil {
		return nil, n.err
	}
	list := n.answers[host]
	if len(list) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	if len(list) > 1 {
		n.answers[host] = list[1:]
	}
	var out []netip.Addr
	for a := range strings.SplitSeq(list[0], ",") {
		if a != "" {
			out = append(out, netip.MustParseAddr(a))
		}
	}
	return out, nil
}

// network stands for the target side: what happens at an address.
type network struct {
	mu     sync.Mutex
	at     map[string]func(ctx context.Context) error // by address without port; nil error connects
	dialed []string
	closed int
	start  time.Time
	times  []time.Duration
}

type fakeConn struct {
	net.Conn
	addr string
	n    *network
}

func (c *fakeConn) Close() error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	c.n.closed++
	return nil
}

func (n *network) connect(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	n.dialed = append(n.dialed, a.String())
	n.times = append(n.times, time.Since(n.start))
	act := n.at[a.Addr().String()]
	n.mu.Unlock()
	if act != nil {
		if err := act(ctx); err != nil {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
		}
	}
	return &fakeConn{addr: a.String(), n: n}, nil
}

func refuse(context.Context) error      { return syscall.ECONNREFUSED }
func unreachable(context.Context) error { return syscall.ENETUNREACH }
func hang(ctx context.Context) error    { <-ctx.Done(); return ctx.Err() }

func after(d time.Duration, err error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-time.After(d):
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func TestDial(t *testing.T) {
	t.Parallel()
	api := &policy.KubernetesAPI{Host: "10.96.0.1", Port: 6443}
	type at = map[string]func(context.Context) error
	for name, c := range map[string]struct {
		rules  []string
		kube   *policy.KubernetesAPI
		target string
		dns    map[string]string
		dnsErr error
		at     at
		dialed []string // in order
		leg    wire.Leg
		code   wire.Code
		text   string
		hint   string
	}{
		"address": {rules: []string{"tcp:10.0.0.1:80"}, target: "tcp:10.0.0.1:80", dialed: []string{"10.0.0.1:80"}},
		"name":    {rules: []string{"tcp:db:80"}, target: "tcp:db:80", dns: map[string]string{"db": "10.0.0.1"}, dialed: []string{"10.0.0.1:80"}},
		"name by network": {rules: []string{"tcp:10.0.0.0/8:80"}, target: "tcp:db:80", dns: map[string]string{"db": "192.168.0.1,10.0.0.1"},
			dialed: []string{"10.0.0.1:80"}},
		"mapped address is dialled as IPv4": {rules: []string{"tcp:db:80"}, target: "tcp:db:80", dns: map[string]string{"db": "::ffff:10.0.0.1"},
			dialed: []string{"10.0.0.1:80"}},
		"families alternate": {rules: []string{"tcp:db:80"}, target: "tcp:db:80",
			dns: map[string]string{"db": "2001:db8::1,2001:db8::2,10.0.0.1"},
			at:  at{"2001:db8::1": unreachable, "10.0.0.1": refuse}, dialed: []string{"[2001:db8::1]:80", "10.0.0.1:80", "[2001:db8::2]:80"}},
		"kubernetes":      {rules: []string{"kubernetes"}, kube: api, target: "kubernetes", dialed: []string{"10.96.0.1:6443"}},
		"kubernetes name": {rules: []string{"kubernetes"}, kube: api, target: "tcp:kubernetes.default.svc.cluster.local:443", dialed: []string{"10.96.0.1:6443"}},
		"kubernetes by a name rule is resolved": {rules: []string{"tcp:kubernetes.default:443"}, kube: api, target: "tcp:kubernetes.default:443",
			dns: map[string]string{"kubernetes.default": "10.9.9.9"}, dialed: []string{"10.9.9.9:443"}},
		"localhost by name": {rules: []string{"tcp:localhost:80"}, target: "tcp:localhost:80", dns: map[string]string{"localhost": "::1,127.0.0.1"},
			at: at{"::1": refuse}, dialed: []string{"[::1]:80", "127.0.0.1:80"}},

		"denied by default": {target: "tcp:db:80", leg: wire.LegPolicy, code: wire.CodeDenied, text: "no rule allows tcp:db:80",
			hint: "start the agent with --allow tcp:db:80"},
		"denied address": {rules: []string{"tcp:10.0.0.0/8:80"}, target: "tcp:db:80", dns: map[string]string{"db": "192.168.0.1"},
			leg: wire.LegPolicy, code: wire.CodeDenied, text: "nor its address 192.168.0.1", hint: "start the agent with --allow tcp:db:80"},
		"rebound to loopback": {rules: []string{"tcp:*:*"}, target: "tcp:evil:80", dns: map[string]string{"evil": "127.0.0.1"},
			leg: wire.LegPolicy, code: wire.CodeDenied, text: "evil leads to 127.0.0.1, a loopback address", hint: "--allow tcp:127.0.0.1:80"},
		"rebound to metadata": {rules: []string{"tcp:*:*"}, target: "tcp:evil:80", dns: map[string]string{"evil": "169.254.169.254"},
			leg: wire.LegPolicy, code: wire.CodeDenied, text: "metadata"},
		"rebound by mapped": {rules: []string{"tcp:*:*"}, target: "tcp:evil:80", dns: map[string]string{"evil": "::ffff:127.0.0.1"},
			leg: wire.LegPolicy, code: wire.CodeDenied, text: "loopback"},
		"rebound by NAT64": {rules: []string{"tcp:*:*"}, target: "tcp:evil:80", dns: map[string]string{"evil": "64:ff9b::a9fe:a9fe"},
			leg: wire.LegPolicy, code: wire.CodeDenied, text: "metadata"},
		"only the good half": {rules: []string{"tcp:*:*"}, target: "tcp:evil:80", dns: map[string]string{"evil": "127.0.0.1,10.0.0.1,::1"},
			dialed: []string{"10.0.0.1:80"}},
		"kubernetes outside of a pod": {rules: []string{"kubernetes"}, target: "kubernetes", leg: wire.LegPolicy, code: wire.CodeDenied, text: "pod"},

		"no such name": {rules: []string{"tcp:*:*"}, target: "tcp:db:80", leg: wire.LegDNS, code: wire.CodeNameNotFound, text: "no address of db"},
		"no addresses": {rules: []string{"tcp:*:*"}, target: "tcp:db:80", dns: map[string]string{"db": ""}, leg: wire.LegDNS, code: wire.CodeNameNotFound},
		"resolver down": {rules: []string{"tcp:*:*"}, target: "tcp:db:80", dnsErr: &net.DNSError{Err: "server misbehaving"},
			leg: wire.LegDNS, code: wire.CodeNameFailed, text: "server misbehaving"},
		"resolver slow": {rules: []string{"tcp:*:*"}, target: "tcp:db:80", dnsErr: &net.DNSError{Err: "i/o timeout", IsTimeout: true},
			leg: wire.LegDNS, code: wire.CodeTimeout},
		"resolver odd": {rules: []string{"tcp:*:*"}, target: "tcp:db:80", dnsErr: errors.New("boom"), leg: wire.LegDNS, code: wire.CodeNameFailed, text: "boom"},

		"refused": {rules: []string{"tcp:*:*"}, target: "tcp:10.0.0.1:80", at: at{"10.0.0.1": refuse}, dialed: []string{"10.0.0.1:80"},
			leg: wire.LegTCP, code: wire.CodeRefused, text: "10.0.0.1:80 refused the connection"},
		"refused says more than unreachable": {rules: []string{"tcp:*:*"}, target: "tcp:db:80", dns: map[string]string{"db": "10.0.0.1,2001:db8::1"},
			at: at{"10.0.0.1": refuse, "2001:db8::1": unreachable}, dialed: []string{"10.0.0.1:80", "[2001:db8::1]:80"},
			leg: wire.LegTCP, code: wire.CodeRefused, text: "db:80 (10.0.0.1, 2001:db8::1) refused"},
		"unreachable": {rules: []string{"tcp:*:*"}, target: "tcp:10.0.0.1:80", at: at{"10.0.0.1": unreachable}, dialed: []string{"10.0.0.1:80"},
			leg: wire.LegTCP, code: wire.CodeUnreachable},
		"reset": {rules: []string{"tcp:*:*"}, target: "tcp:10.0.0.1:80", at: at{"10.0.0.1": func(context.Context) error { return syscall.ECONNRESET }},
			dialed: []string{"10.0.0.1:80"}, leg: wire.LegTCP, code: wire.CodeReset},
		"other": {rules: []string{"tcp:*:*"}, target: "tcp:10.0.0.1:80", at: at{"10.0.0.1": func(context.Context) error { return syscall.EMFILE }},
			dialed: []string{"10.0.0.1:80"}, leg: wire.LegTCP, code: wire.CodeInternal, text: "too many open files"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dns := &names{answers: map[string][]string{}, err: c.dnsErr}
			for k, v := range c.dns {
				dns.answers[k] = []string{v}
			}
			n := &network{at: c.at}
			d := &reach.Dialer{Policy: allow(t, c.kube, c.rules...), Resolver: dns, Connect: n.connect, Stagger: time.Hour}
			conn, err := d.Dial(t.Context(), target(t, c.target))
			if diff := cmp.Diff(c.dialed, n.dialed); diff != "" {
				t.Errorf("dialled: %s", diff)
			}
			if c.leg == wire.LegUnknown {
				if err != nil {
					t.Fatal(err)
				}
				if got := conn.(*fakeConn).addr; got != c.dialed[len(c.dialed)-1] {
					t.Errorf("connected to %s", got)
				}
				return
			}
			var f *wire.Failure
			if !errors.As(err, &f) || f.Leg != c.leg || f.Code != c.code || !strings.Contains(f.Text, c.text) || !strings.Contains(f.Hint, c.hint) {
				t.Fatalf("got %#v, want %s %s %q (%q)", err, c.leg, c.code, c.text, c.hint)
			}
			if conn != nil {
				t.Errorf("an error comes with a connection")
			}
		})
	}
}

// TestNoSecondLookup is the rebinding attack: a name that answers well when it
// is checked and badly right after.
func TestNoSecondLookup(t *testing.T) {
	t.Parallel()
	dns := &names{answers: map[string][]string{"evil": {"10.0.0.1", "127.0.0.1"}}}
	n := &network{}
	d := &reach.Dialer{Policy: allow(t, nil, "tcp:evil:80"), Resolver: dns, Connect: n.connect}
	if _, err := d.Dial(t.Context(), target(t, "tcp:evil:80")); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(n.dialed, []string{"10.0.0.1:80"}) || len(dns.asked) != 1 {
		t.Errorf("dialled %v after %d lookups", n.dialed, len(dns.asked))
	}
	_, err := d.Dial(t.Context(), target(t, "tcp:evil:80"))
	if f := wire.AsFailure(err, wire.LegUnknown); f == nil || f.Leg != wire.LegPolicy {
		t.Errorf("the second time: %v", err)
	}
}

func TestHappyEyeballs(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		at     map[string]func(context.Context) error
		winner string
		times  []time.Duration
		took   time.Duration
		closed int
		code   wire.Code
	}{
		"the first hangs": {map[string]func(context.Context) error{"2001:db8::1": hang}, "10.0.0.1:80",
			[]time.Duration{0, 250 * time.Millisecond}, 250 * time.Millisecond, 0, 0},
		"the first fails at once": {map[string]func(context.Context) error{"2001:db8::1": refuse}, "10.0.0.1:80",
			[]time.Duration{0, 0}, 0, 0, 0},
		"the first is slow but wins": {map[string]func(context.Context) error{"2001:db8::1": after(400*time.Millisecond, nil), "10.0.0.1": hang, "10.0.0.2": hang},
			"[2001:db8::1]:80", []time.Duration{0, 250 * time.Millisecond}, 400 * time.Millisecond, 0, 0},
		"two win at once": {map[string]func(context.Context) error{"2001:db8::1": after(300*time.Millisecond, nil), "10.0.0.1": func(context.Context) error {
			time.Sleep(50 * time.Millisecond) // deaf to the context
			return nil
		}}, "", []time.Duration{0, 250 * time.Millisecond}, 300 * time.Millisecond, 1, 0},
		"a failure restarts the stagger": {map[string]func(context.Context) error{"2001:db8::1": after(100*time.Millisecond, syscall.ECONNREFUSED), "10.0.0.1": hang},
			"10.0.0.2:80", []time.Duration{0, 100 * time.Millisecond, 350 * time.Millisecond}, 350 * time.Millisecond, 0, 0},
		"none answers": {map[string]func(context.Context) error{"2001:db8::1": hang, "10.0.0.1": hang, "10.0.0.2": hang}, "",
			[]time.Duration{0, 250 * time.Millisecond, 500 * time.Millisecond}, 10 * time.Second, 0, wire.CodeTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &network{at: c.at, start: time.Now()}
				d := &reach.Dialer{
					Policy:   allow(t, nil, "tcp:db:80"),
					Resolver: &names{answers: map[string][]string{"db": {"2001:db8::1,10.0.0.1,10.0.0.2"}}},
					Connect:  n.connect,
				}
				conn, err := d.Dial(t.Context(), target(t, "tcp:db:80"))
				if took := time.Since(n.start); took != c.took {
					t.Errorf("took %s, want %s", took, c.took)
				}
				if diff := cmp.Diff(c.times, n.times); diff != "" {
					t.Errorf("attempts at %s", diff)
				}
				if n.closed != c.closed {
					t.Errorf("closed %d losers, want %d", n.closed, c.closed)
				}
				if c.code != 0 {
					if f := wire.AsFailure(err, wire.LegUnknown); f == nil || f.Leg != wire.LegTCP || f.Code != c.code || !strings.Contains(f.Text, "10s") {
						t.Fatalf("got %v, want %s", err, c.code)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if got := conn.(*fakeConn).addr; c.winner != "" && got != c.winner {
					t.Errorf("connected to %s, want %s", got, c.winner)
				}
			})
		})
	}
}

type slowNames struct{}

func (slowNames) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	<-ctx.Done()
	return nil, &net.DNSError{Err: ctx.Err().Error(), Name: host, IsTimeout: true}
}

func TestTimeLimitAndCancel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := &network{at: map[string]func(context.Context) error{"10.0.0.1": hang}}
		for _, c := range []struct {
			target string
			cancel time.Duration
			limit  time.Duration
			took   time.Duration
			leg    wire.Leg
			code   wire.Code
			text   string
		}{
			{"tcp:db:80", 0, 0, 10 * time.Second, wire.LegDNS, wire.CodeTimeout, "within 10s"},
			{"tcp:10.0.0.1:80", 0, 3 * time.Second, 3 * time.Second, wire.LegTCP, wire.CodeTimeout, "within 3s"},
			{"tcp:db:80", time.Second, 0, time.Second, wire.LegDNS, wire.CodeCanceled, "given up"},
			{"tcp:10.0.0.1:80", time.Second, 0, time.Second, wire.LegTCP, wire.CodeCanceled, "given up"},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			if c.cancel > 0 {
				time.AfterFunc(c.cancel, cancel)
			}
			start := time.Now()
			d := &reach.Dialer{Policy: allow(t, nil, "tcp:*:*"), Resolver: slowNames{}, Connect: n.connect, Timeout: c.limit}
			_, err := d.Dial(ctx, target(t, c.target))
			f := wire.AsFailure(err, wire.LegUnknown)
			if f == nil || f.Leg != c.leg || f.Code != c.code || !strings.Contains(f.Text, c.text) || time.Since(start) != c.took {
				t.Errorf("%s: %v after %s, want %s %s after %s", c.target, err, time.Since(start), c.leg, c.code, c.took)
			}
			cancel()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		d := &reach.Dialer{Policy: allow(t, nil, "tcp:*:*"), Resolver: slowNames{}, Connect: n.connect}
		_, err := d.Dial(ctx, target(t, "tcp:10.0.0.1:80"))
		if f := wire.AsFailure(err, wire.LegUnknown); f == nil || f.Code != wire.CodeTimeout || !strings.Contains(f.Text, "within 2s") {
			t.Errorf("the caller's deadline: %v", err)
		}
	})
}

// TestRealTCP goes without stand-ins: the system's resolver and sockets.
func TestRealTCP(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "hello")
			c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	d := &reach.Dialer{Policy: allow(t, nil, "tcp:localhost:*", "tcp:127.0.0.1:*")}
	for _, host := range []string{"localhost", "127.0.0.1"} {
		conn, err := d.Dial(t.Context(), target(t, "tcp:"+host+":"+port))
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := conn.(*net.TCPConn); !ok {
			t.Errorf("%T is not a *net.TCPConn", conn)
		}
		if b, err := io.ReadAll(conn); string(b) != "hello" {
			t.Errorf("read %q, %v", b, err)
		}
		conn.Close()
	}
	ln.Close()
	<-served
	_, err = d.Dial(t.Context(), target(t, "tcp:127.0.0.1:"+port))
	if f := wire.AsFailure(err, wire.LegUnknown); f == nil || f.Code != wire.CodeRefused || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial of a closed port: %v", err)
	}
}

// TestPermit: whoever runs the dialer says how a refused target would be allowed.
func TestPermit(t *testing.T) {
	d := &reach.Dialer{
		Policy: allow(t, nil, "tcp:db:81", "tcp:10.0.0.0/8:80"), Permit: func(rule string) string { return "ask for " + rule },
		Resolver: &names{answers: map[string][]string{"db": {"192.168.0.1"}}},
	}
	for _, refused := range []string{"tcp:db:82", "tcp:db:80"} { // by name, and by address
		_, err := d.Dial(t.Context(), target(t, refused))
		if f := wire.AsFailure(err, wire.LegUnknown); f.Code != wire.CodeDenied || f.Hint != "ask for "+refused {
			t.Errorf("%s: %v, hint %q", refused, err, f.Hint)
		}
	}
}
