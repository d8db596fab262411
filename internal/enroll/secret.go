package enroll

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/secretfile"
	"postern.dev/postern/internal/wire"
)

// Secret is the long-lived thing that is exchanged for short-lived credentials.
type Secret interface {
	// SubjectToken returns what to show to the hub, and its type as RFC 8693 §3
	// names it. It is called at each renewal.
	SubjectToken(ctx context.Context) (token, tokenType string, err error)
}

// Replaceable is a Secret or a KeyPair that may become another one while the program
// runs. Session.Run looks for that every few seconds.
type Replaceable interface {
	// Changed reports whether there is another one than that which was shown last.
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
	t, info, err := readTokenFile(name)
	if err != nil {
		return Token{}, false, err
	}
	return t, secretfile.Exposed(info), nil
}

func readTokenFile(name string) (Token, fs.FileInfo, error) {
	b, info, err := readFile(name)
	if err != nil {
		return Token{}, nil, fileFailure(name, err)
	}
	var t Token
	if err = tooLong(b); err == nil {
		t, err = ParseToken(b)
	}
	if err != nil {
		return Token{}, nil, badToken("token file "+name, err)
	}
	return t, info, nil
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

	file source[Token]
}

// SubjectToken implements Secret.
func (r *RobotToken) SubjectToken(context.Context) (token, tokenType string, err error) {
	var t Token
	if r.File != "" {
		t, err = r.file.get(r.read, r.warn)
	} else if t, err = ParseToken([]byte(r.Value)); err != nil {
		err = badToken("the token given", err)
	}
	if err != nil {
		return "", "", err
	}
	return t.Token, t.Type(), nil
}

func (r *RobotToken) read() (Token, fs.FileInfo, error) { return readTokenFile(r.File) }

func (r *RobotToken) warn() {
	if r.Log != nil {
		r.Log.Warn("token file can be read by others; make it private with chmod 600", "file", r.File)
	}
}

// Changed implements Replaceable.
func (r *RobotToken) Changed() bool {
	return r.file.changed(r.File, r.read, func(a, b Token) bool { return a.Token == b.Token })
}

// Provided implements Replaceable.
func (r *RobotToken) Provided() bool { return provided(r.File) }
