package enroll_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/wire"
)

func TestParseToken(t *testing.T) {
	for name, tc := range map[string]struct {
		in       string
		want     string // the token, or what stands in the error
		accessID string
		ok       bool
	}{
		"JSON":               {in: `{"accessId":"abc","token":"aa.bb.cc"}`, want: "aa.bb.cc", accessID: "abc", ok: true},
		"JSON, more":         {in: "{\n \"token\": \"aa.bb.cc\", \"other\": 1 }\n", want: "aa.bb.cc", ok: true},
		"bare":               {in: "aa.bb.cc\n", want: "aa.bb.cc", ok: true},
		"byte order mark":    {in: "\ufeffaa.bb.cc\r\n", want: "aa.bb.cc", ok: true},
		"administrator":      {in: "postern-admin-Abc_123\n", want: "postern-admin-Abc_123", ok: true},
		"empty":              {in: "", want: "it is empty"},
		"white":              {in: " \n\t", want: "it is empty"},
		"truncated JSON":     {in: `{"accessId":"abc","token":"aa.b`, want: "truncated"},
		"no token":           {in: `{"accessId":"abc"}`, want: `has no "token"`},
		"truncated":          {in: "aa.bb", want: "truncated"},
		"truncated at a dot": {in: "aa.bb.", want: "truncated"},
		"two lines":          {in: "aa.bb.cc\naa.bb.cc", want: "something else"},
		"PEM":                {in: "-----BEGIN PRIVATE KEY-----\n", want: "something else"},
		"binary":             {in: "\x00\x01\x02", want: "something else"},
		"HTML":               {in: "<html>", want: "something else"},
		"long":               {in: strings.Repeat("a", 5000), want: "5000 bytes"},
	} {
		got, err := enroll.ParseToken([]byte(tc.in))
		switch {
		case tc.ok && (err != nil || got.Token != tc.want || got.AccessID != tc.accessID):
			t.Errorf("%s: %+v, %v", name, got, err)
		case !tc.ok && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %+v, error %v, want one with %q", name, got, err, tc.want)
		}
	}
}

func TestTokenFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token.json")
	write := func(s string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	var log logBuffer
	secret := &enroll.RobotToken{File: file, Log: logger(&log)}

	_, _, err := secret.SubjectToken(t.Context())
	var f *wire.Failure
	if !errors.As(err, &f) || !errors.Is(err, os.ErrNotExist) || !strings.Contains(f.Hint, "postern robot token create") || !enroll.Permanent(err) {
		t.Errorf("missing: %v", err)
	}
	write(`{"token":"aa.bb.cc"}`, 0o600)
	if tok, kind, err := secret.SubjectToken(t.Context()); err != nil || tok != "aa.bb.cc" || kind != api.TokenTypeJWT {
		t.Errorf("%s, %s, %v", tok, kind, err)
	}
	if log.String() != "" {
		t.Errorf("logged: %s", log.String())
	}
	write("admin-token", 0o640)
	for range 2 {
		if tok, kind, err := secret.SubjectToken(t.Context()); err != nil || tok != "admin-token" || kind != api.TokenTypeAccess {
			t.Errorf("replaced: %s, %s, %v", tok, kind, err)
		}
	}
	if n := strings.Count(log.String(), "chmod 600"); n != 1 || strings.Contains(log.String(), "admin-token") {
		t.Errorf("warned %d times: %s", n, log.String())
	}
	write(strings.Repeat(" ", 20<<10), 0o600)
	if _, _, err := secret.SubjectToken(t.Context()); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("long file: %v", err)
	}
	if _, _, err := enroll.ReadTokenFile(filepath.Dir(file)); err == nil {
		t.Error("a directory was read")
	}
}

func FuzzParseToken(f *testing.F) {
	for _, s := range []string{`{"accessId":"abc","token":"aa.bb.cc"}`, "aa.bb.cc\n", "", "{", "\ufeff{}", "a.b"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := enroll.ParseToken(b)
		if err != nil {
			return
		}
		if again, err := enroll.ParseToken([]byte(got.Token)); err != nil || again.Token != got.Token {
			t.Fatalf("%q gave %q, which gives %q, %v", b, got.Token, again.Token, err)
		}
		if strings.ContainsAny(got.Token, "\r\n \t") {
			t.Fatalf("%q gave %q, which no header may hold", b, got.Token)
		}
	})
}
