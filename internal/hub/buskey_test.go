package hub_test

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/wire"
)

// TestBusKeyOfAnotherParty: nobody gets credentials for the bus key of another
// party, which their revocation would cut off the bus.
func TestBusKeyOfAnotherParty(t *testing.T) {
	f, ctx := newFixture(t), t.Context()
	victim, mallory := f.robot("default", "bot").Token, f.robot("default", "mallory").Token
	if _, err := f.client("").Exchange(ctx, tokenRequest(t, victim)); err != nil {
		t.Fatal(err)
	}
	theft := tokenRequest(t, mallory)
	theft.Name = "plant"
	_, err := f.client("").Exchange(ctx, theft)
	wantFailure(t, "another party's bus key", err, wire.CodeDenied, "another party's")
	if _, err := f.client("").Exchange(ctx, tokenRequest(t, victim)); err != nil {
		t.Errorf("its owner renews: %v", err)
	}
	if err := f.admin.DeleteRobot(ctx, "default", "mallory"); err != nil {
		t.Fatal(err)
	}
	if len(f.voided) != 0 {
		t.Errorf("bus users were voided: %v", f.voided)
	}
	theft = tokenRequest(t, victim)
	theft.Name = "plant"
	if theft.BusKey, _, err = bus.NewUserKey(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.client("").Exchange(ctx, theft); err != nil {
		t.Errorf("with a key of its own: %v", err)
	}
}

// TestRevokedBusUserAfterARestart: the bus forgets revocations when it ends. Who
// was revoked and holds some other good certificate gets no further than before.
func TestRevokedBusUserAfterARestart(t *testing.T) {
	dir, ctx := filepath.Join(t.TempDir(), "hub"), t.Context()
	h, stop := startHub(t, dir)
	sessions := map[string]*enroll.Session{}
	for _, robot := range []string{"good", "revoked"} {
		if _, err := h.admin.CreateRobot(ctx, "default", api.CreateRobot{Name: robot}); err != nil {
			t.Fatal(err)
		}
		token, err := h.admin.CreateRobotToken(ctx, "default", robot, api.CreateToken{Name: "one"})
		if err != nil {
			t.Fatal(err)
		}
		s := h.session(t, "default", &enroll.RobotToken{Value: token.Token})
		if err := s.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if !h.mayConnect(t, s) {
			t.Fatalf("%s is not let in", robot)
		}
		sessions[robot] = s
	}
	if err := h.admin.DeleteRobot(ctx, "default", "revoked"); err != nil {
		t.Fatal(err)
	}
	if h.mayConnect(t, sessions["revoked"]) {
		t.Error("a revoked user is let in")
	}
	stop()
	h, stop = startHub(t, dir)
	defer stop()
	if h.mayConnect(t, sessions["revoked"]) {
		t.Error("a revoked user is let in after a restart")
	}
	if !h.mayConnect(t, sessions["good"]) {
		t.Error("the other one is not let in")
	}
}

// mayConnect reports whether the bus takes a session's credentials. It looks for a
// moment only: a refusal ends the attempt.
func (h *realHub) mayConnect(t *testing.T, s *enroll.Session) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := bus.Connect(ctx, bus.Options{
		Dial: func(ctx context.Context) (net.Conn, error) {
			near, far := pipetest.TCPPair(t, nil)
			t.Cleanup(func() { _ = near.Close() })
			go func() { _ = h.bus.Serve(context.WithoutCancel(ctx), far) }()
			return near, nil
		},
		Token: func() string { return s.Grant().BusToken },
		Seed:  func() []byte { return s.Grant().BusKey },
		Name:  "test",
		OnState: func(connected bool, err error) {
			if !connected && wire.AsFailure(err, wire.LegUnknown).Code == wire.CodeUnauthenticated {
				cancel()
			}
		},
	})
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
