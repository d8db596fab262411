package enroll_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/wire"
)

// run starts Run and returns a function that stops it and returns its error.
func run(t *testing.T, s *enroll.Session) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return func() error {
		cancel()
		return <-done
	}
}

func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newFakeHub(t, time.Hour)
		s := enroll.New(hub, request(), nil)
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		var at []time.Duration
		s.OnRenew(func(*enroll.Grant) { at = append(at, time.Since(start)) })
		first := s.Grant()
		stop := run(t, s)
		time.Sleep(35 * time.Minute)
		synctest.Wait()
		if s.Grant() != first {
			t.Error("renewed too early")
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if err := stop(); err != nil {
			t.Error(err)
		}
		last := time.Duration(0)
		for _, d := range at {
			if gap := d - last; gap < 36*time.Minute || gap > 44*time.Minute {
				t.Errorf("renewed after %s", gap)
			}
			last = d
		}
		if n := len(at); n < 33 || n > 41 {
			t.Errorf("%d renewals in a day", n)
		}
		if s.Grant().BusKey == nil || s.Credentials().Certificate.PrivateKey == first.Credentials.Certificate.PrivateKey {
			t.Error("the certificate's key was not renewed")
		}
	})
}

// TestRenewalOfShortLives renews credentials that live for seconds: there is never a
// moment without good ones.
func TestRenewalOfShortLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := enroll.New(newFakeHub(t, 2*time.Second), request(), nil)
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		renewals := 0
		s.OnRenew(func(*enroll.Grant) { renewals++ })
		stop := run(t, s)
		for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(50 * time.Millisecond) {
			if left := time.Until(s.Grant().Expires); left <= 0 {
				t.Fatalf("after %s the credentials are %s past their end", time.Since(begin), -left)
			}
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		if renewals < 40 {
			t.Errorf("%d renewals in a minute", renewals)
		}
	})
}

func TestHubAwayForHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newFakeHub(t, time.Hour)
		var log logBuffer
		s := enroll.New(hub, request(), logger(&log))
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		old := s.Grant()
		stop := run(t, s)
		hub.set(func(h *fakeHub) { h.fail = func() (int, string) { return 0, "" } })
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if s.Grant() != old {
			t.Error("credentials were dropped")
		}
		tried := hub.requests()
		if tried < 200 || tried > 1000 { // about two hours and a third, every 15 to 30 s
			t.Errorf("%d attempts", tried)
		}
		hub.set(func(h *fakeHub) { h.fail = nil })
		time.Sleep(time.Minute)
		synctest.Wait()
		if s.Grant() == old {
			t.Error("no new credentials when the hub was back")
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		if strings.Contains(log.String(), token) {
			t.Error("the log holds the token")
		}
	})
}

func TestRevokedTokenEndsWithTheCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newFakeHub(t, time.Hour)
		s := enroll.New(hub, request(), nil)
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		hub.set(func(h *fakeHub) { h.fail = func() (int, string) { return 401, api.ErrorInvalidGrant } })
		err := s.Run(t.Context())
		var f *wire.Failure
		if !errors.As(err, &f) || f.Code != wire.CodeUnauthenticated {
			t.Errorf("error %v", err)
		}
		if d := time.Since(start); d < 59*time.Minute || d > 61*time.Minute {
			t.Errorf("gave up after %s", d)
		}
	})
}

func TestRunWithoutStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newFakeHub(t, 10*time.Second)
		hub.fail = func() (int, string) { return 503, api.ErrorUnavailable }
		hub.header.Set("Retry-After", "7")
		s := enroll.New(hub, request(), nil)
		stop := run(t, s)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if n := hub.requests(); n != 1 {
			t.Errorf("%d requests before Retry-After was over", n)
		}
		hub.set(func(h *fakeHub) { h.fail = nil })
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if s.Grant() == nil {
			t.Error("no credentials")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := hub.requests(); n < 8 || n > 13 {
			t.Errorf("%d requests in a minute with credentials of 10 s", n)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestRunWithBadTokenAndNoGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newFakeHub(t, time.Hour)
		hub.fail = func() (int, string) { return 401, api.ErrorInvalidGrant }
		if err := enroll.New(hub, request(), nil).Run(t.Context()); !enroll.Permanent(err) {
			t.Errorf("error %v", err)
		}
	})
}

// TestRevokedByNameWaits: a party that is revoked by name outlives its credentials, asks
// on without haste, even when all refuse it, and comes back when it is restored.
func TestRevokedByNameWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newFakeHub(t, time.Hour)
		s := enroll.New(hub, request(), nil)
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		stop := run(t, s)
		hub.set(func(h *fakeHub) { h.fail = func() (int, string) { return 403, api.ErrorPartyRevoked } })
		for begin := time.Now(); time.Since(begin) < 2*time.Hour; time.Sleep(time.Second) {
			s.Refused() // by the bus, again and again
		}
		if n := hub.requests(); n < 200 || n > 500 { // every 15 to 30 s
			t.Errorf("%d attempts in two hours", n)
		}
		hub.set(func(h *fakeHub) { h.fail = nil })
		old := s.Grant()
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if s.Grant() == old {
			t.Error("no new credentials when it was restored")
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestRevokedByNameFromTheStart: it also waits if it was started when it was revoked.
func TestRevokedByNameFromTheStart(t *testing.T) {
	hub := newFakeHub(t, time.Hour)
	hub.fail = func() (int, string) { return 403, api.ErrorPartyRevoked }
	err := enroll.New(hub, request(), nil).Start(t.Context())
	var f *wire.Failure
	if enroll.Permanent(err) || !errors.As(err, &f) || f.Code != wire.CodeDenied || f.Hint == "" {
		t.Errorf("%v; want a refusal that may end", err)
	}
}
