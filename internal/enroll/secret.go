package enroll

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/secretfile"
	"postern.dev/postern/internal/wire"
)

// maxTokenFile bounds a token file, in bytes.
const maxTokenFile = 16 << 10

// Secret is the long-lived thing that is exchanged for short-lived credentials.
type Secret interface {
	// SubjectToken returns what to show to the hub, and its type as RFC 8693 §3
	// names it. It is called at each renewal.
	SubjectToken(ctx context.Context) (token, tokenType string, err error)
}

// Replaceable is a Secret that may become another one while the program runs.
// Session.Run looks for that every few seconds.
type Replaceable interface {
	Secret

	// Changed reports whether SubjectToken would give another token than the one
	// that it gave last.
	Changed() bool

	// Provided reports whether a machine puts the secret there, and will put
	// another one there without starting this program again. Then a refusal is not
	// final.
	Provided() bool
}

// Token is what a token file holds.
type Token struct {
	AccessID string // empty when the file holds the token only
	Token    string
}

// Type returns the token's type for a token exchange: a robot's is a JWT, an
// administrator's is not.
func (t Token) Type() string {
	if strings.Count(t.Token, ".") == 2 {
		return api.TokenTypeJWT
	}
	return api.TokenTypeAccess
}

// ParseToken reads a token: JSON with "accessId" and "token" as the hub gives it
// out, or the bare token, with white space around it. Errors never quote what
// they are about.
func ParseToken(b []byte) (Token, error) {
	b = bytes.TrimSpace(bytes.TrimPrefix(b, []byte("\ufeff")))
	if len(b) == 0 {
		return Token{}, errors.New("it is empty")
	}
	var t Token
	if b[0] == '{' {
		var file api.NewToken
		if err := json.Unmarshal(b, &file); err != nil {
			return Token{}, errors.New("it begins like JSON and is not; it may be truncated")
		}
		t = Token{AccessID: file.AccessID, Token: strings.TrimSpace(file.Token)}
		if t.Token == "" {
			return Token{}, errors.New(`its JSON has no "token"`)
		}
	} else {
		t.Token = string(b)
	}
	if len(t.Token) > identity.MaxTokenLen {
		return Token{}, fmt.Errorf("the token in it has %d bytes; at most %d are possible", len(t.Token), identity.MaxTokenLen)
	}
	if strings.IndexFunc(t.Token, func(r rune) bool { return !isTokenRune(r) }) >= 0 {
		return Token{}, errors.New("it holds something else than a token")
	}
	if n := strings.Count(t.Token, "."); n != 0 && (n != 2 || strings.HasSuffix(t.Token, ".")) {
		return Token{}, errors.New("the token in it is truncated")
	}
	return t, nil
}

// isTokenRune reports whether r occurs in compact JWTs and in administrators'
// tokens: base64url and dots.
func isTokenRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.'
}

// ReadTokenFile reads a token file, of at most 16 KiB. exposed reports whether
// others may read it (see package secretfile), which deserves a warning. Errors are
// *wire.Failure that name the file and say what to do.
func ReadTokenFile(name string) (t Token, exposed bool, err error) {
	f, err := os.Open(name)
	if err != nil {
		return Token{}, false, fileFailure(name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Token{}, false, fileFailure(name, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxTokenFile+1))
	if err != nil {
		return Token{}, false, fileFailure(name, err)
	}
	if len(b) > maxTokenFile {
		return Token{}, false, badToken(fmt.Sprintf("token file %s", name), fmt.Errorf("it is longer than %d bytes", maxTokenFile))
	}
	if t, err = ParseToken(b); err != nil {
		return Token{}, false, badToken(fmt.Sprintf("token file %s", name), err)
	}
	return t, secretfile.Exposed(info), nil
}

func fileFailure(name string, err error) error {
	f := wire.Fail(wire.LegHub, wire.CodeBadRequest, "token file %s cannot be read: %s", name, plain(err)).WithCause(err)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.Hint = "make one with: postern robot token create ROBOT NAME -f " + name
	case errors.Is(err, fs.ErrPermission):
		f.Hint = "let the user that runs this program read it"
	}
	return f
}

func badToken(what string, err error) error {
	return wire.Fail(wire.LegHub, wire.CodeBadRequest, "%s: %s", what, err).WithCause(err).
		WithHint("make a new one with: postern robot token create ROBOT NAME -f FILE")
}

// plain returns the system's word of a file error, without operation and path.
func plain(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

// RobotToken is the Secret of robots, and of administrators at a shell: a token
// in a file, or itself. The file is read again at each renewal and when it has
// changed, so that a token can be replaced while the program runs. Set one of File
// and Value before first use. It is safe for concurrent use.
type RobotToken struct {
	File  string
	Value string
	Log   *slog.Logger // for a warning about the file's permissions; nil: none

	mu     sync.Mutex
	warned bool
	kept   *Token      // from a pipe, which can be read only once
	shown  string      // the token that was given last
	seen   os.FileInfo // of the file when it held the token that was given last
}

// SubjectToken implements Secret.
func (r *RobotToken) SubjectToken(context.Context) (token, tokenType string, err error) {
	if r.File == "" {
		t, err := ParseToken([]byte(r.Value))
		if err != nil {
			return "", "", badToken("the token given", err)
		}
		return t.Token, t.Type(), nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept != nil {
		return r.kept.Token, r.kept.Type(), nil
	}
	t, exposed, err := ReadTokenFile(r.File)
	if err != nil {
		return "", "", err
	}
	if exposed && !r.warned && r.Log != nil {
		r.warned = true
		r.Log.Warn("token file can be read by others; make it private with chmod 600", "file", r.File)
	}
	if info, err := os.Stat(r.File); err == nil && !info.Mode().IsRegular() {
		r.kept = &t
	}
	r.shown = t.Token
	return t.Token, t.Type(), nil
}

// Changed implements Replaceable. It is cheap while the file stays as it is. A file
// that is missing or holds no token has not changed: it is being replaced.
func (r *RobotToken) Changed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.File == "" || r.kept != nil || r.shown == "" {
		return false
	}
	info, err := os.Stat(r.File)
	if err != nil || r.seen != nil && os.SameFile(info, r.seen) && info.ModTime().Equal(r.seen.ModTime()) && info.Size() == r.seen.Size() {
		return false
	}
	t, _, err := ReadTokenFile(r.File)
	if err != nil {
		return false
	}
	if t.Token == r.shown {
		r.seen = info
	}
	return t.Token != r.shown
}

// Provided implements Replaceable: a file that is a symbolic link, as those of a
// Secret's volume in a pod are, is not somebody's at a shell.
func (r *RobotToken) Provided() bool {
	info, err := os.Lstat(r.File)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}
