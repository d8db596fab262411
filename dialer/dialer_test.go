package dialer_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/dialer"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/testnet"
	"postern.dev/postern/internal/testnet/world"
)

// TestDialer goes every way to a target, on one Dialer.
func TestDialer(t *testing.T) {
	w := start(t, nil)
	o := w.Options
	o.Warm = []string{"office"}
	d := dial(t, o)
	_, port, _ := net.SplitHostPort(w.Echo)

	for name, open := range map[string]func() (net.Conn, error){
		"target":        func() (net.Conn, error) { return d.Dial(t.Context(), "office/tcp:"+w.Echo) },
		"default agent": func() (net.Conn, error) { return d.Dial(t.Context(), "tcp:"+w.Echo) },
		"address":       func() (net.Conn, error) { return d.DialContext(t.Context(), "tcp", w.Echo) },
		"host name": func() (net.Conn, error) {
			return d.DialContext(t.Context(), "tcp4", "127.0.0.1.office.postern.internal:"+port)
		},
	} {
		c, err := open()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_ = c.SetDeadline(time.Now().Add(world.Patience))
		_, err = io.WriteString(c, "there and back")
		if half, ok := c.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
			t.Errorf("%s: no half-close", name)
		}
		got, readErr := io.ReadAll(c)
		if string(got) != "there and back" || err != nil || readErr != nil {
			t.Errorf("%s: %q, %v, %v", name, got, err, readErr)
		}
		if err := c.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	transport := d.Transport("office")
	defer transport.CloseIdleConnections()
	transport.TLSClientConfig = w.Secure.Client().Transport.(*http.Transport).TLSClientConfig
	for _, address := range []string{w.Page.URL, w.Secure.URL} {
		res, err := (&http.Client{Transport: transport}).Get(address)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if !strings.HasPrefix(string(body), "hello from 127.0.0.1") || err != nil {
			t.Errorf("%s: %q, %v", address, body, err)
		}
	}
}

// TestErrors: each failure names its leg and code, and says what to do.
func TestErrors(t *testing.T) {
	w := start(t, nil)
	o := w.Options
	o.Agent = ""
	d := dial(t, o)
	closed := testnet.FreeAddr(t)
	expired, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	for target, want := range map[string]dialer.Error{
		"office/tcp:10.0.0.1:1":          {Leg: dialer.LegPolicy, Code: dialer.CodeDenied},
		"office/tcp:nowhere.invalid:1":   {Leg: dialer.LegDNS, Code: dialer.CodeNameNotFound},
		"office/tcp:" + closed:           {Leg: dialer.LegTCP, Code: dialer.CodeRefused},
		"plant/tcp:127.0.0.1:1":          {Leg: dialer.LegAgent, Code: dialer.CodeNoAgent},
		"tcp:127.0.0.1:1":                {Leg: dialer.LegClient, Code: dialer.CodeBadRequest},
		"office/udp:127.0.0.1:1":         {Leg: dialer.LegClient, Code: dialer.CodeBadRequest},
		"Office/tcp:127.0.0.1:1":         {Leg: dialer.LegClient, Code: dialer.CodeBadRequest},
		"office/tcp:127.0.0.1:99999":     {Leg: dialer.LegClient, Code: dialer.CodeBadRequest},
		"default/office/tcp:127.0.0.1:1": {Leg: dialer.LegClient, Code: dialer.CodeBadRequest},
		"":                               {Leg: dialer.LegClient, Code: dialer.CodeBadRequest},
	} {
		c, err := d.Dial(t.Context(), target)
		var e *dialer.Error
		if !errors.As(err, &e) || c != nil || e.Leg != want.Leg || e.Code != want.Code || e.Text == "" || !strings.Contains(err.Error(), e.Text) {
			t.Errorf("%q: %#v, %v", target, e, err)
		}
	}
	for _, address := range []string{"127.0.0.1", "127.0.0.1:x", "127.0.0.1:1", "office.postern.internal:1"} {
		if _, err := d.DialContext(t.Context(), "tcp", address); !hasCode(err, dialer.CodeBadRequest) {
			t.Errorf("%q: %v", address, err)
		}
	}
	if _, err := d.DialContext(t.Context(), "udp", "127.0.0.1:1"); !hasCode(err, dialer.CodeBadRequest) {
		t.Errorf("udp: %v", err)
	}
	_, err := d.Dial(expired, "plant/tcp:127.0.0.1:1")
	if e, ok := errors.AsType[net.Error](err); !ok || !errors.Is(err, context.DeadlineExceeded) && !e.Temporary() { //nolint:staticcheck // part of net.Error
		t.Errorf("expired: %v", err)
	}
}

func hasCode(err error, code dialer.Code) bool {
	e, ok := errors.AsType[*dialer.Error](err)
	return ok && e.Code == code
}

// TestOptions: what cannot work is said at once.
func TestOptions(t *testing.T) {
	for name, change := range map[string]func(*dialer.Options){
		"no secret":    func(o *dialer.Options) { o.Token = "" },
		"two secrets":  func(o *dialer.Options) { o.TokenFile = "x" },
		"no hub":       func(o *dialer.Options) { o.ConnectURL = "" },
		"no URL":       func(o *dialer.Options) { o.ConnectURL = "hub.example.org" },
		"no CA":        func(o *dialer.Options) { o.CAFile = "/nowhere/ca.crt" },
		"organization": func(o *dialer.Options) { o.Organization = "A B" },
		"name":         func(o *dialer.Options) { o.Name = "A B" },
		"agent":        func(o *dialer.Options) { o.Agent = "a/b" },
		"zone":         func(o *dialer.Options) { o.Zone = "a b" },
	} {
		o := dialer.Options{ConnectURL: "tls://127.0.0.1:1", Token: "aa.bb.cc"}
		change(&o)
		if d, err := dialer.New(t.Context(), o); !hasCode(err, dialer.CodeBadRequest) {
			t.Errorf("%s: %v, %v", name, d, err)
		}
	}
	t.Setenv("POSTERN_CONFIG_DIR", t.TempDir())
	if o, err := dialer.FromContext(""); !hasCode(err, dialer.CodeBadRequest) {
		t.Errorf("no context: %+v, %v", o, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dialer.New(ctx, dialer.Options{ConnectURL: "tls://127.0.0.1:1", Token: "aa.bb.cc"}); err == nil {
		t.Error("a hub that is not there was reached")
	}
}

// TestClose: Close cuts what is open and leaves nothing running, also when it is called
// twice.
func TestClose(t *testing.T) {
	w := start(t, nil)
	d := dial(t, w.Options)
	c, err := d.Dial(t.Context(), "office/tcp:"+w.Echo)
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	for range 2 {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-read; err == nil || err == io.EOF {
		t.Errorf("a cut looks like an end: %v", err)
	}
	<-d.Done()
	if d.Err() != nil {
		t.Errorf("closed on purpose: %v", d.Err())
	}
	if _, err := d.Dial(t.Context(), "office/tcp:"+w.Echo); !hasCode(err, dialer.CodeCanceled) || !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	c.Close()
}

// TestRevoked: a Dialer whose token is revoked ends, and says why.
func TestRevoked(t *testing.T) {
	w := start(t, nil)
	o := w.Options
	token := o.Token
	o.Token, o.TokenSource = "", func(context.Context) (string, error) { return token, nil }
	d := dial(t, o)
	if err := w.Admin.DeleteRobot(t.Context(), config.DefaultOrganization, world.Robot); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.Done():
	case <-time.After(world.Patience):
		t.Fatal("the dialer goes on")
	}
	if !hasCode(d.Err(), dialer.CodeUnauthenticated) {
		t.Errorf("it ended with %v", d.Err())
	}
	if _, err := d.Dial(t.Context(), "tcp:"+w.Echo); !hasCode(err, dialer.CodeUnauthenticated) {
		t.Errorf("Dial: %v", err)
	}
}

// TestGateway: a Gateway tells where clusters are, and shows tokens as they are at the
// moment.
func TestGateway(t *testing.T) {
	w := start(t, nil)
	o := w.Options
	calls := 0
	o.Token, o.TokenSource = "", func(context.Context) (string, error) {
		if calls++; calls == 1 {
			return "", errors.New("not yet")
		}
		return w.Token, nil
	}
	g, err := dialer.NewGateway(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(w.ConnectURL, "tls://", "https://", 1) + "/default:office"
	if got, err := g.URL("office"); got != want || err != nil || len(g.CA) == 0 || g.ServerName != "" {
		t.Errorf("%s, %v, CA %q, name %q", got, err, g.CA, g.ServerName)
	}
	if got, err := g.URL("../v1"); !hasCode(err, dialer.CodeBadRequest) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := g.Token(t.Context()); err == nil || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("the first time: %v", err)
	}
	for range 3 {
		if got, err := g.Token(t.Context()); got != w.Token || err != nil {
			t.Errorf("%v", err)
		}
	}
	if calls != 2 {
		t.Errorf("%d calls", calls)
	}
	o.CAFile, o.CAPin = "", "sha256:"+strings.Repeat("00", 32)
	if _, err := dialer.NewGateway(t.Context(), o); !hasCode(err, dialer.CodeWrongPeer) {
		t.Errorf("another hub: %v", err)
	}
	o.ConnectURL = "wss://127.0.0.1:1"
	if _, err := dialer.NewGateway(t.Context(), o); !hasCode(err, dialer.CodeBadRequest) {
		t.Errorf("wss: %v", err)
	}
}
