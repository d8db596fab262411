package identity

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSession(t *testing.T) {
	s, err := NewTokenSigner("test.internal")
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewTokenSigner("test.internal")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	want := SessionClaims{User: "ann@example.org", ID: "0b1c", IssuedAt: now, Expires: now.Add(time.Hour)}
	token, err := s.SignSession(want)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.SignSession(want); err != nil || again == token {
		t.Errorf("twice the same token, %v", err)
	}
	got, err := s.VerifySession(token, now)
	if diff := cmp.Diff(want, got); diff != "" || err != nil || !IsSession(token) {
		t.Error(err, diff)
	}
	robot, err := s.SignRobot(RobotClaims{Organization: "acme", Robot: "bot", AccessID: "0b1c", IssuedAt: now})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.VerifyRobot(token, now); !errors.Is(err, ErrTokenMalformed) {
		t.Errorf("a session passes for a robot's token: %v", err)
	}
	parts := strings.Split(token, ".")
	for name, tt := range map[string]struct {
		token string
		at    time.Time
		want  error
	}{
		"a robot's":   {robot, now, ErrTokenMalformed},
		"nothing":     {"", now, ErrTokenMalformed},
		"truncated":   {parts[0] + "." + parts[1], now, ErrTokenMalformed},
		"long":        {strings.Repeat("x", MaxTokenLen+1), now, ErrTokenMalformed},
		"changed":     {parts[0] + "." + parts[1][:len(parts[1])-4] + "AAAA." + parts[2], now, ErrTokenSignature},
		"another key": {mustSign(t, other, want), now, ErrTokenSignature},
		"expired":     {token, now.Add(time.Hour), ErrTokenExpired},
	} {
		if _, err := s.VerifySession(tt.token, tt.at); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	for _, bad := range []SessionClaims{{User: "", ID: "x"}, {User: "ann", ID: ""}, {User: "a\n", ID: "x"}} {
		if _, err := s.SignSession(bad); err == nil {
			t.Errorf("%+v was signed", bad)
		}
	}
}

func mustSign(t *testing.T, s *TokenSigner, c SessionClaims) string {
	t.Helper()
	token, err := s.SignSession(c)
	if err != nil {
		t.Fatal(err)
	}
	return token
}
