package proxy

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// confined are lines as an operator writes them: several for one user, each with its agent.
const confined = "lab:one agent=lab as=ns/one\nlab:two agent=acme/lab as=ns/two\nedge:three agent=edge as=ns/three\n"

// TestLines checks who several lines of a user make of him, and that a token is still looked at.
func TestLines(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	a := mustAccess(t, AccessConfig{Users: mustUsers(t, confined+"carol:pw agent=lab\n"), Verify: tokens(&calls)})
	many := Router{Organization: "default", Organizations: true}
	for _, c := range []struct {
		user, password string
		router         Router
		who, where     string // empty where: refused
	}{
		{"lab", "one", many, "client:ns/one", "default/lab"},
		{"lab", "two", many, "client:ns/two", "acme/lab"},
		{"edge", "three", many, "client:ns/three", "default/edge"},
		{"edge", "one", many, "", ""},
		{"lab", "three", many, "", ""},
		{"acme/lab", "two", many, "", ""},
		{"lab", "default-token", many, "robot:ci", "default/lab"},
		{"carol", "default-token", many, "", ""},
		{"lab", "one", Router{Organization: "default"}, "client:ns/one", "default/lab"},
		{"lab", "two", Router{Organization: "default"}, "", ""},
	} {
		for range 2 { // the second time from memory
			got, err := a.login(t.Context(), true, Login{c.user, c.password, true}, c.router)
			if c.where == "" {
				if f := wire.AsFailure(err, wire.LegUnknown); f == nil || f.Code != wire.CodeUnauthenticated {
					t.Errorf("%s %s: %+v, %v", c.user, c.password, got, err)
				}
				continue
			}
			if err != nil || got.id.Principal.String() != c.who || got.choice.String() != c.where || got.id.Organization != got.choice.Organization {
				t.Errorf("%s %s: %+v, %v", c.user, c.password, got, err)
			}
		}
	}
}

// TestConfined checks, at both front ends, that a line with an agent reaches no other, whatever
// the client names.
func TestConfined(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: serveTarget(t, echo)}
	access := mustAccess(t, AccessConfig{Users: mustUsers(t, confined)})
	h, s := startHTTP(t, access, frontConfig(o)), startSOCKS(t, access, frontConfig(o))
	const denied = "\x05\x02"
	for _, c := range []struct {
		user, password, host string
		status               int
		socks                string
	}{
		{"lab", "one", "db", 200, replyOK},
		{"lab", "one", "db.lab.postern.internal", 200, replyOK},
		{"lab", "two", "db", 200, replyOK},
		{"lab", "one", "db.edge.postern.internal", 403, denied},
		{"lab", "two", "db.edge.postern.internal", 403, denied},
		{"lab", "one", "kubernetes.edge.postern.internal", 403, denied},
		{"lab", "one", "db.EDGE.Postern.Internal.", 403, denied},
		{"edge", "one", "db", 407, ""},
		{"default/edge", "one", "db", 407, ""},
		{"default.edge", "one", "db", 407, ""},
	} {
		for _, request := range []string{"CONNECT " + c.host + ":80 HTTP/1.1\r\n", "GET http://" + c.host + "/ HTTP/1.1\r\nHost: x\r\n"} {
			if c.status == 200 && request[0] == 'G' {
				continue // the target does not speak HTTP
			}
			conn := dialFront(t, h)
			if c.status == 200 {
				send(t, conn, request+basic(c.user, c.password)+"\r\n")
				expect(t, conn, established)
				_ = conn.Close()
				continue
			}
			if res, body := exchange(t, conn, request+basic(c.user, c.password)+"\r\n"); res.StatusCode != c.status {
				t.Errorf("%s as %s:%s: %d %s", request, c.user, c.password, res.StatusCode, body)
			}
		}
		conn := dialFront(t, s)
		send(t, conn, greetPassword+socksLogin(c.user, c.password))
		if c.status == 407 {
			expect(t, conn, "\x05\x02\x01\x01")
			continue
		}
		expect(t, conn, "\x05\x02\x01\x00")
		send(t, conn, socksName(c.host, 80))
		got := make([]byte, len(c.socks))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != c.socks {
			t.Errorf("SOCKS5 to %s as %s:%s: %s, %v", c.host, c.user, c.password, hex.EncodeToString(got), err)
		}
		_ = conn.Close()
	}
	for _, asked := range o.opened() {
		if !strings.HasPrefix(asked, "default/lab ") && !strings.HasPrefix(asked, "acme/lab ") {
			t.Errorf("opened %s", asked)
		}
	}
}

// TestCredentialsChange follows a credentials file: it is not there, comes, is broken, changes, and
// is emptied. Streams end with their line, and with no other change.
func TestCredentialsChange(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	file := filepath.Join(t.TempDir(), "credentials")
	c := newCredentials(file, slog.New(slog.NewTextHandler(&log, nil)))
	users, err := c.first()
	if err != nil || !strings.Contains(log.String(), "not there") {
		t.Fatalf("without a file: %v\n%s", err, log.String())
	}
	o := &fakeOpener{dial: serveTarget(t, echo)}
	a := mustAccess(t, AccessConfig{Users: users})
	h := startHTTP(t, a, frontConfig(o))
	write := func(text string) {
		t.Helper()
		log.Reset()
		next := file + ".next"
		if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, file); err != nil {
			t.Fatal(err)
		}
		c.look(a)
		if log.Len() > 0 {
			t.Errorf("a file that has just changed was read: %s", log.String())
		}
		c.look(a)
	}
	try := func(user, password string) int {
		t.Helper()
		conn := dialFront(t, h)
		defer conn.Close()
		send(t, conn, "CONNECT db:1 HTTP/1.1\r\n"+basic(user, password)+"\r\n")
		res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	want := func(logins map[string]int) {
		t.Helper()
		got := make(map[string]int)
		for login := range logins {
			user, password, _ := strings.Cut(login, ":")
			got[login] = try(user, password)
		}
		if diff := cmp.Diff(logins, got); diff != "" {
			t.Error(diff)
		}
	}
	open := func(user, password string) io.ReadWriteCloser {
		t.Helper()
		conn := dialFront(t, h)
		send(t, conn, "CONNECT db:1 HTTP/1.1\r\n"+basic(user, password)+"\r\n")
		expect(t, conn, established)
		return conn
	}
	want(map[string]int{"lab:one": 407, ":": 407, "*:x": 407})

	write("lab:one agent=lab\nalice:x\n")
	want(map[string]int{"lab:one": 200, "alice:x": 200, "lab:two": 407})
	stays, goes := open("alice", "x"), open("lab", "one")
	write("alice:x\nbob:secret agent=lab for=ever\n:nobody\nlab:one agent=lab\n")
	if got := log.String(); strings.Count(got, "is skipped") != 2 || !strings.Contains(got, "line 2") || !strings.Contains(got, "line 3") ||
		!strings.Contains(got, "streams_ended=0") || strings.Contains(got, "secret") {
		t.Errorf("of lines that cannot be used it says %q", got)
	}
	want(map[string]int{"lab:one": 200, "alice:x": 200, "bob:secret": 407, ":nobody": 407})
	write(strings.Repeat("x", maxUsersFile+1))
	if !strings.Contains(log.String(), "stay in use") {
		t.Errorf("of a file that cannot be used it says %q", log.String())
	}
	log.Reset()
	c.look(a)
	if log.Len() > 0 {
		t.Errorf("it says so again: %s", log.String())
	}
	want(map[string]int{"lab:one": 200, "alice:x": 200})
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	c.look(a)
	c.look(a)
	want(map[string]int{"lab:one": 200})

	write("# another password\nlab:two agent=lab\nalice:x\n")
	want(map[string]int{"lab:one": 407, "lab:two": 200, "alice:x": 200})
	if n, err := goes.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a stream of a line that is gone: %d, %v", n, err)
	}
	if _, err := io.WriteString(stays, "hello"); err != nil {
		t.Fatal(err)
	}
	expect(t, stays, "hello")
	write("")
	want(map[string]int{"lab:two": 407, "alice:x": 407})
	if n, err := stays.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a stream after the file was emptied: %d, %v", n, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.live) > 0 {
		t.Errorf("%d lines are remembered", len(a.live))
	}
}

// TestPing checks that a client learns whether its credentials are good, and that nothing is opened
// for it.
func TestPing(t *testing.T) {
	t.Parallel()
	o := &fakeOpener{dial: serveTarget(t, echo)}
	rec := newRecorder()
	cfg := frontConfig(o)
	cfg.Observer = rec
	h := startHTTP(t, mustAccess(t, AccessConfig{Users: mustUsers(t, confined)}), cfg)
	for _, c := range []struct {
		login  string
		status int
		say    string
	}{
		{basic("lab", "one"), http.StatusNoContent, "postern"},
		{basic("lab", "two"), http.StatusNoContent, "postern"},
		{basic("edge", "one"), http.StatusProxyAuthRequired, "postern; error"},
		{"", http.StatusProxyAuthRequired, "postern; error"},
		{basic("lab", "one") + basic("lab", "one"), http.StatusBadRequest, "postern; error"},
	} {
		res, _ := exchange(t, dialFront(t, h), "OPTIONS * HTTP/1.1\r\nHost: x\r\n"+c.login+"\r\n")
		if got := res.Header.Get("Proxy-Status"); res.StatusCode != c.status || !strings.HasPrefix(got, c.say) {
			t.Errorf("%q: %d %q", c.login, res.StatusCode, got)
		}
	}
	if asked := o.opened(); len(asked) > 0 || len(rec.get("refused")) != 3 {
		t.Errorf("opened %v, refused %v", asked, rec.get("refused"))
	}
}

// TestWithdrawnMeanwhile checks that a stream whose line went while it was being opened is not kept.
func TestWithdrawnMeanwhile(t *testing.T) {
	t.Parallel()
	a := mustAccess(t, AccessConfig{Users: mustUsers(t, "lab:one agent=lab")})
	g, err := a.login(t.Context(), true, Login{"lab", "one", true}, Router{Organization: "default"})
	if err != nil || g.id.Principal != (identity.Principal{Kind: identity.KindClient, Name: "lab"}) {
		t.Fatal(g, err)
	}
	a.replace(mustUsers(t, "lab:one agent=edge"))
	s := newStay()
	if _, err := a.lodge(g.by, s); err == nil || !s.ended() || s.why == nil {
		t.Errorf("%v, %v", err, s.why)
	}
}

// TestLinesThatCannotBeUsed checks that such lines grant nothing and take nothing from the others,
// in whatever order they stand, and that of many few are told of.
func TestLinesThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	const good = "alice:x\nlab:one agent=lab\n"
	costly := "carol:$2a$31$abcdefghijklmnopqrstuuJ0J0J0J0J0J0J0J0J0J0J0J0J0J0J0J0"
	for _, line := range []string{
		"nonsense", ":pw", "carol:", "carol:pw agent=", "carol:pw agent=lab as=", "carol:pw agent=lab agent=lab", "carol:pw as=x", "carol:p w", "ca rol:pw",
		"carol:$2a$04$short", costly, "carol:{SHA}x", "carol:" + strings.Repeat("p", maxUserLine), "carol:p\xffw", strings.Repeat("c", 1<<17), "*:pw agent=no/such/name",
		"alice:y", "alice:x agent=lab", "lab:one", "lab:two", // do not go with those above them
	} {
		users, bad, err := parseUsers(good + line + "\n")
		if err != nil || len(bad) != 1 || users.size() != 2 || len(users.find("carol")) != 0 {
			t.Errorf("%.40q: %v, %v", line, bad, err)
			continue
		}
		if strings.Contains(bad[0].Error(), "pw") {
			t.Errorf("%q is told with its password: %v", line, bad[0])
		}
		for name := range users.entries {
			if name != "alice" && name != "lab" {
				t.Errorf("%.40q makes a user %q", line, name)
			}
		}
		if users, bad, err = parseUsers(line + "\n" + good); err != nil || len(bad) == 0 || len(users.find("carol")) != 0 {
			t.Errorf("%.40q at first: %v, %v", line, bad, err)
		}
	}
	var log bytes.Buffer
	file := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(file, []byte(strings.Repeat("bad\n", 1000)+good), 0o600); err != nil {
		t.Fatal(err)
	}
	users, err := newCredentials(file, slog.New(slog.NewTextHandler(&log, nil))).first()
	if err != nil || users.size() != 2 || strings.Count(log.String(), "\n") != badLinesTold+1 || !strings.Contains(log.String(), "lines=990") {
		t.Errorf("%v\n%s", err, log.String())
	}
}
