package proxy

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/bcrypt"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/secretfile"
)

// Bounds of a credentials file.
const (
	maxUsersFile = 1 << 20 // bytes
	maxUserLine  = 1024    // bytes
)

// Users are static credentials. They are immutable and safe for concurrent use.
type Users struct {
	entries map[string]*userEntry
	decoy   *userEntry // checked for unknown names, so that they take as long as known ones
}

type userEntry struct {
	hash    []byte            // bcrypt, or nil
	digest  [sha256.Size]byte // of the password, if there is no hash
	agent   string            // the one agent of this user; empty for any
	anyUser bool              // the entry "*"
}

// LoadUsers reads a credentials file. Since it has secrets, others must not be
// able to read it (see package secretfile), unless every password is hashed.
func LoadUsers(path string) (*Users, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxUsersFile+1))
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	users, plain, err := parseUsers(string(text))
	if err != nil {
		return nil, fmt.Errorf("read credentials: %s: %w", path, err)
	}
	if mode := info.Mode().Perm(); plain && secretfile.Exposed(info) {
		return nil, fmt.Errorf("read credentials: %s has passwords in clear and its mode is %04o; run chmod 600 %s, or hash them with htpasswd -B", path, mode, path)
	}
	if mode := info.Mode().Perm(); mode&0o002 != 0 {
		return nil, fmt.Errorf("read credentials: anybody may write to %s (mode %04o)", path, mode)
	}
	return users, nil
}

// ParseUsers reads credentials, one in a line:
//
//	USER:PASSWORD               USER may use any agent; a host name or the default chooses it
//	USER:PASSWORD agent=NAME    USER goes to this agent and no other
//	*:PASSWORD                  any user name will do, and it is the agent's
//
// PASSWORD is in clear or a bcrypt hash ($2a$, $2b$, $2y$, as htpasswd -B
// writes). Empty lines and those that begin with # are skipped.
func ParseUsers(text string) (*Users, error) {
	users, _, err := parseUsers(text)
	return users, err
}

func parseUsers(text string) (users *Users, plain bool, err error) {
	if len(text) > maxUsersFile {
		return nil, false, fmt.Errorf("more than %d bytes", maxUsersFile)
	}
	users = &Users{entries: make(map[string]*userEntry)}
	lines := bufio.NewScanner(strings.NewReader(text))
	cost := 0
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		// The line itself stays out of errors: it has a secret.
		name, entry, err := parseUser(line)
		if err != nil {
			return nil, false, fmt.Errorf("line %d: %w", n, err)
		}
		if users.entries[name] != nil {
			return nil, false, fmt.Errorf("line %d: user %q is there twice", n, name)
		}
		users.entries[name] = entry
		if entry.hash == nil {
			plain = true
		} else if c, err := bcrypt.Cost(entry.hash); err == nil {
			cost = max(cost, c)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, false, err
	}
	if len(users.entries) == 0 {
		return nil, false, errors.New("no credentials in it; want lines of USER:PASSWORD")
	}
	users.decoy = &userEntry{}
	_, _ = rand.Read(users.decoy.digest[:]) // never fails
	if cost > 0 {
		if users.decoy.hash, err = bcrypt.GenerateFromPassword([]byte(rand.Text()), cost); err != nil {
			return nil, false, err
		}
	}
	return users, plain, nil
}

func parseUser(line string) (string, *userEntry, error) {
	if len(line) > maxUserLine || !utf8.ValidString(line) {
		return "", nil, fmt.Errorf("want at most %d bytes of UTF-8", maxUserLine)
	}
	name, rest, ok := strings.Cut(line, ":")
	if !ok || name == "" || strings.ContainsAny(name, " \t\x00") {
		return "", nil, errors.New("want USER:PASSWORD or USER:PASSWORD agent=NAME")
	}
	password, option, _ := strings.Cut(rest, " ")
	entry := &userEntry{anyUser: name == "*"}
	if option = strings.TrimSpace(option); option != "" {
		if entry.agent, ok = strings.CutPrefix(option, "agent="); !ok {
			return "", nil, errors.New("after the password only agent=NAME may follow; a password has no spaces")
		}
		if err := identity.ValidateName("agent ID", entry.agent); err != nil {
			return "", nil, err
		}
	}
	switch {
	case password == "":
		return "", nil, fmt.Errorf("user %q has no password", name)
	case strings.HasPrefix(password, "$2"):
		entry.hash = []byte(password)
		if _, err := bcrypt.Cost(entry.hash); err != nil {
			return "", nil, fmt.Errorf("user %q: the bcrypt hash is damaged", name)
		}
	case strings.HasPrefix(password, "$"), strings.HasPrefix(password, "{SHA}"):
		return "", nil, fmt.Errorf("user %q: this kind of hash is not supported; make one with htpasswd -B", name)
	default:
		entry.digest = sha256.Sum256([]byte(password))
	}
	return name, entry, nil
}

// find returns the entry of a user, or that of all users.
func (u *Users) find(name string) (*userEntry, bool) {
	if e, ok := u.entries[name]; ok && name != "*" {
		return e, true
	}
	e, ok := u.entries["*"]
	return e, ok
}

// waste takes the time of a check that cannot succeed.
func (u *Users) waste(ctx context.Context, slots chan struct{}, password string) {
	_, _ = u.decoy.matches(ctx, slots, password)
}

// matches compares in constant time. A hash is slow by design, so that only as
// many as there are slots are computed at once.
func (e *userEntry) matches(ctx context.Context, slots chan struct{}, password string) (bool, error) {
	if e.hash == nil {
		got := sha256.Sum256([]byte(password))
		return subtle.ConstantTimeCompare(got[:], e.digest[:]) == 1, nil
	}
	release, err := acquire(ctx, slots)
	if err != nil {
		return false, err
	}
	defer release()
	return bcrypt.CompareHashAndPassword(e.hash, []byte(password)) == nil, nil
}
