package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
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
	maxHashCost  = 16      // of bcrypt: seconds of a processor for each login; all lines of a user together cost no more
)

// Users are static credentials. They are immutable and safe for concurrent use.
type Users struct {
	entries map[string][]*userEntry
	decoy   []*userEntry // checked for unknown names, so that they take as long as known ones
	plain   bool         // a password is in clear
}

type userEntry struct {
	name    string            // as the line has it
	hash    []byte            // bcrypt, or nil
	digest  [sha256.Size]byte // of the password, if there is no hash
	org     string            // of agent; empty for the proxy's own
	agent   string            // the one agent of this user; empty for any
	as      string            // who the user is to grants and records; empty: the user name
	anyUser bool              // the entry "*"
	line    [sha256.Size]byte // of the whole line, to know it again in a later file
}

// LoadUsers reads a credentials file. Since it has secrets, others must not be
// able to read it (see package secretfile), unless every password is hashed.
//
// Lines that cannot be used grant nothing to anybody, and are told of in bad: several
// may write the file, and the mistake of one must not keep the others out.
func LoadUsers(path string) (users *Users, bad []error, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read credentials: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("read credentials: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxUsersFile+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read credentials: %w", err)
	}
	users, bad, err = parseUsers(string(text))
	if err != nil {
		return nil, nil, fmt.Errorf("read credentials: %s: %w", path, err)
	}
	if mode := info.Mode().Perm(); users.plain && secretfile.Exposed(info) {
		return nil, nil, fmt.Errorf("read credentials: %s has passwords in clear and its mode is %04o; run chmod 600 %s, or hash them with htpasswd -B", path, mode, path)
	}
	if mode := info.Mode().Perm(); mode&0o002 != 0 {
		return nil, nil, fmt.Errorf("read credentials: anybody may write to %s (mode %04o)", path, mode)
	}
	return users, bad, nil
}

// ParseUsers reads credentials, one in a line:
//
//	USER:PASSWORD                       USER may use any agent; a host name or the default chooses it
//	USER:PASSWORD agent=[ORG/]NAME      USER goes to this agent and no other
//	USER:PASSWORD agent=NAME as=OTHER   and is client:OTHER to grants and records
//	*:PASSWORD                          any user name will do, and it is the agent's
//
// PASSWORD is in clear or a bcrypt hash ($2a$, $2b$, $2y$, as htpasswd -B
// writes). A user may have several lines if each names its agent: the password
// tells which one counts. Empty lines and those that begin with # are skipped;
// without any other nobody has credentials. The error is that of the first line
// that cannot be used.
func ParseUsers(text string) (*Users, error) {
	users, bad, err := parseUsers(text)
	if err == nil && len(bad) > 0 {
		err = bad[0]
	}
	if err != nil {
		return nil, err
	}
	return users, nil
}

// parseUsers reads the lines that can be used, and says of each other one why it cannot.
// Of lines that do not go together the first counts.
func parseUsers(text string) (users *Users, bad []error, err error) {
	if len(text) > maxUsersFile {
		return nil, nil, fmt.Errorf("more than %d bytes", maxUsersFile)
	}
	users = &Users{entries: make(map[string][]*userEntry)}
	work, n := make(map[string]int), 0 // in rounds of bcrypt
	for line := range strings.Lines(text) {
		n++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		// The line itself stays out of errors: it has a secret.
		name, entry, err := parseUser(line)
		if err != nil {
			bad = append(bad, fmt.Errorf("line %d: %w", n, err))
			continue
		}
		if others := users.entries[name]; len(others) > 0 && (entry.agent == "" || others[0].agent == "") {
			bad = append(bad, fmt.Errorf("line %d: user %q is there twice; each of the lines has to name its agent", n, name))
			continue
		}
		if work[name]+entry.rounds() > 1<<maxHashCost {
			bad = append(bad, fmt.Errorf("line %d: the bcrypt hashes of user %q cost more together than one of cost %d; make them with a lower one", n, name, maxHashCost))
			continue
		}
		work[name] += entry.rounds()
		users.entries[name] = append(users.entries[name], entry)
		users.plain = users.plain || entry.hash == nil
	}
	slowest := 0
	for name, all := range users.entries {
		if users.decoy == nil || work[name] > slowest {
			slowest, users.decoy = work[name], all
		}
	}
	return users, bad, nil
}

func parseUser(line string) (string, *userEntry, error) {
	if len(line) > maxUserLine || !utf8.ValidString(line) {
		return "", nil, fmt.Errorf("want at most %d bytes of UTF-8", maxUserLine)
	}
	name, rest, ok := strings.Cut(line, ":")
	if !ok || name == "" || strings.ContainsAny(name, " \t\x00") {
		return "", nil, errors.New("want USER:PASSWORD or USER:PASSWORD agent=NAME")
	}
	password, options, _ := strings.Cut(rest, " ")
	entry := &userEntry{name: name, anyUser: name == "*", line: sha256.Sum256([]byte(line))}
	if err := entry.restrict(strings.Fields(options)); err != nil {
		return "", nil, err
	}
	switch {
	case password == "":
		return "", nil, fmt.Errorf("user %q has no password", name)
	case strings.HasPrefix(password, "$2"):
		entry.hash = []byte(password)
		if cost, err := bcrypt.Cost(entry.hash); err != nil {
			return "", nil, fmt.Errorf("user %q: the bcrypt hash is damaged", name)
		} else if cost > maxHashCost {
			return "", nil, fmt.Errorf("user %q: the bcrypt hash has the cost %d, and %d is the most", name, cost, maxHashCost)
		}
	case strings.HasPrefix(password, "$"), strings.HasPrefix(password, "{SHA}"):
		return "", nil, fmt.Errorf("user %q: this kind of hash is not supported; make one with htpasswd -B", name)
	default:
		entry.digest = sha256.Sum256([]byte(password))
	}
	return name, entry, nil
}

// restrict reads what follows a password.
func (e *userEntry) restrict(options []string) error {
	for _, option := range options {
		key, value, ok := strings.Cut(option, "=")
		switch {
		case ok && key == "agent" && e.agent == "":
			if e.agent = value; strings.Contains(value, "/") {
				e.org, e.agent, _ = strings.Cut(value, "/")
				if err := identity.ValidateName("organization", e.org); err != nil {
					return err
				}
			}
			if err := identity.ValidateName("agent ID", e.agent); err != nil {
				return err
			}
		case ok && key == "as" && e.as == "" && e.agent != "":
			if err := (identity.Principal{Kind: identity.KindClient, Name: value}).Validate(); err != nil {
				return err
			}
			e.as = value
		default:
			return errors.New("after the password only agent=NAME may follow, and after that as=NAME; a password has no spaces")
		}
	}
	return nil
}

// find returns the lines of a user, or those of all users.
func (u *Users) find(name string) []*userEntry {
	if all := u.entries[name]; len(all) > 0 && name != "*" {
		return all
	}
	return u.entries["*"]
}

// has reports whether an entry is one of these.
func (u *Users) has(entry *userEntry) bool { return slices.Contains(u.entries[entry.name], entry) }

// adopt takes the entries of an earlier file whose lines are the same, so that what
// depends on them goes on.
func (u *Users) adopt(earlier *Users) {
	for name, all := range u.entries {
		for i, e := range all {
			same := func(old *userEntry) bool { return old.line == e.line }
			if at := slices.IndexFunc(earlier.entries[name], same); at >= 0 {
				all[i] = earlier.entries[name][at]
			}
		}
	}
}

// size is the number of lines.
func (u *Users) size() (n int) {
	for _, all := range u.entries {
		n += len(all)
	}
	return n
}

// waste takes the time of a wrong password of the user whose lines take longest. What
// comes of it does not count.
func (u *Users) waste(ctx context.Context, slots chan struct{}, password string) {
	for _, e := range u.decoy {
		if _, err := e.matches(ctx, slots, password); err != nil {
			return
		}
	}
}

// rounds is how much work it is to compute the hash, if there is one.
func (e *userEntry) rounds() int {
	if cost, err := bcrypt.Cost(e.hash); err == nil {
		return 1 << cost
	}
	return 0
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
