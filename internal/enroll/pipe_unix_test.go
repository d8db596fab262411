//go:build unix

package enroll_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"postern.dev/postern/internal/enroll"
)

// A token file may be a pipe (a shell's <(…)), which can be read only once.
func TestTokenFromPipe(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(pipe, []byte("aa.bb.cc"), 0) }()
	secret := &enroll.RobotToken{File: pipe}
	for range 2 {
		if tok, _, err := secret.SubjectToken(t.Context()); err != nil || tok != "aa.bb.cc" {
			t.Errorf("%s, %v", tok, err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
