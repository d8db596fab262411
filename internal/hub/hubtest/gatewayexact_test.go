package hubtest_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestGatewayExact sends requests through the hub and the agent, and straight to the API
// server, and compares what arrives at either end.
func TestGatewayExact(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	k := newKube(t)
	w.agent("a", k.of("plant"))
	token := tokenIn(t, w.token)
	w.serves(token, "plant")

	far, err := tls.Dial("tcp", k.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	_ = far.SetDeadline(time.Now().Add(patience))
	farIn := bufio.NewReader(far)
	near, nearIn := w.dial()
	long := strings.Repeat("0123456789abcdef", 64<<10)
	for _, text := range []string{
		"GET @/api HTTP/1.1\r\n\r\n", "GET @/ HTTP/1.1\r\n\r\n", "GET @/api//v1/ HTTP/1.1\r\n\r\n", "GET @/api/v1/nodes/a%3Ab%2Fc%20d/ HTTP/1.1\r\n\r\n",
		"GET @/x%2f%7e~%41;a=b?c=%2F&&d? HTTP/1.1\r\n\r\n", "GET @/a? HTTP/1.1\r\n\r\n", "GET @/./a|b{c}\"^` HTTP/1.1\r\n\r\n", "GET @/ü HTTP/1.1\r\n\r\n",
		"GET @/a?q=" + strings.Repeat("y", 20000) + " HTTP/1.1\r\n\r\n",
		"GET @/a HTTP/1.1\r\nAccept: b\r\nAccept: c\r\nX-lower_Case: 1\r\nX-Empty:\r\nAccept-Encoding: gzip\r\n\r\n",
		"HEAD @/a HTTP/1.1\r\n\r\n", "OPTIONS @/a HTTP/1.1\r\n\r\n", "DELETE @/a HTTP/1.1\r\n\r\n",
		"PATCH @/a HTTP/1.1\r\nContent-Length: 2\r\nContent-Type: application/apply-patch+yaml\r\n\r\n{}",
		"POST @/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTrailer: X-Check\r\n\r\n5\r\nhello\r\n0\r\nX-Check: 7\r\n\r\n",
		"POST @/a HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
		fmt.Sprintf("POST @/a HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s", len(long), long),
		fmt.Sprintf("PUT @/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(long), long),
		"GET @/a HTTP/1.1\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\r\n",
	} {
		name := text[:min(len(text), 60)]
		text = strings.Replace(text, "HTTP/1.1\r\n", "HTTP/1.1\r\nHost: hub\r\nUser-Agent: kubectl\r\n", 1)
		res1, body1 := roundTrip(t, far, farIn, strings.Replace(text, "@", "", 1))
		want, n1 := k.last()
		authorized := strings.Replace(text, "\r\n", "\r\nAuthorization: Bearer "+token+"\r\n", 1)
		res2, body2 := roundTrip(t, near, nearIn, strings.Replace(authorized, "@", "/plant", 1))
		got, n2 := k.last()
		if res2.StatusCode != http.StatusOK || n2 != n1+1 {
			t.Errorf("%q: %s %.300q, %d requests", name, res2.Status, body2, n2-n1)
			continue
		}
		if got.User != "postern:robot:machines" || got.Authorization != "Bearer agents-token" {
			t.Errorf("%q: as %s with %s", name, got.User, got.Authorization)
		}
		for field := range got.Header {
			if strings.HasPrefix(field, "Impersonate-") || field == "Authorization" || field == "Content-Length" && got.Length == 0 {
				got.Header.Del(field)
			}
		}
		for _, field := range []string{"Connection", "X-Hop", "Keep-Alive", "Content-Length", "Expect"} { // of the hop, or of what Length tells
			want.Header.Del(field)
			got.Header.Del(field)
		}
		got.Header.Del("Te")
		got.User, got.Groups, got.Authorization = "", nil, ""
		want.Encoding, got.Encoding = nil, nil // HTTP/2 has none
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q arrived otherwise:\n%.1500s", name, diff)
		}
		if body2 != strings.Replace(body1, "hello ", "hello postern:robot:machines", 1) || !slices.Equal(res1.Trailer["X-Sum"], res2.Trailer["X-Sum"]) {
			t.Errorf("%q: %q and %v, directly %q and %v", name, body2, res2.Trailer, body1, res1.Trailer)
		}
	}
}

// roundTrip sends a request as it stands there; the body of one that expects to be asked
// for it waits.
func roundTrip(t *testing.T, conn net.Conn, in *bufio.Reader, text string) (*http.Response, string) {
	t.Helper()
	method, _, _ := strings.Cut(text, " ")
	head, rest, _ := strings.Cut(text, "\r\n\r\n")
	head += "\r\n\r\n"
	if !strings.Contains(head, "100-continue") {
		head, rest = head+rest, ""
	}
	for {
		if _, err := io.WriteString(conn, head); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("%.80q: %v", text, err)
		}
		if res.StatusCode == http.StatusContinue {
			head = rest
			continue
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatalf("%.80q: %v", text, err)
		}
		return res, string(body)
	}
}
