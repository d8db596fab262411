package enroll

import (
	"context"
	"io/fs"
	"log/slog"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// KeyPair is an agent's private key, in a file or itself, with which it proves who
// it is. The file is read again at each renewal and when it has changed, so that a key
// can be replaced while the program runs. Set one of File and Value before first use. It is safe
// for concurrent use.
type KeyPair struct {
	File  string
	Value string       // PEM; line breaks may be written as \n
	Log   *slog.Logger // for a warning about the file's permissions; nil: none

	file source[*identity.AgentKey]
}

// assert signs what a request asks for. The hub is asked for its trust domain
// first, over the connection that was verified: it is the assertion's audience.
func (k *KeyPair) assert(ctx context.Context, client *api.Client, req *api.TokenRequest) error {
	key, err := k.key()
	if err != nil {
		return err
	}
	hub, err := client.HubVersion(ctx)
	if err != nil {
		return err
	}
	req.SubjectToken, err = key.SignAssertion(identity.Claims{
		TrustDomain: hub.TrustDomain, Organization: req.Organization, Agent: req.Name, Request: req.Digest(),
	}, time.Now())
	if err != nil {
		return internal("sign assertion", err)
	}
	return nil
}

// key returns the private key of the moment.
func (k *KeyPair) key() (*identity.AgentKey, error) {
	if k.File == "" {
		key, err := identity.ParseAgentKey([]byte(k.Value))
		if err != nil {
			return nil, badKey("the private key given", err)
		}
		return key, nil
	}
	return k.file.get(k.read, k.warn)
}

func (k *KeyPair) read() (*identity.AgentKey, fs.FileInfo, error) { return readKeyFile(k.File) }

func (k *KeyPair) warn() {
	if k.Log != nil {
		k.Log.Warn("private key file can be read by others; make it private with chmod 600", "file", k.File)
	}
}

// Changed implements Replaceable.
func (k *KeyPair) Changed() bool {
	return k.file.changed(k.File, k.read, func(a, b *identity.AgentKey) bool { return a.Public().ID() == b.Public().ID() })
}

// Provided implements Replaceable.
func (k *KeyPair) Provided() bool { return provided(k.File) }

// readKeyFile reads a private key, and what its file is. Errors are *wire.Failure
// that name the file and say what to do.
func readKeyFile(name string) (*identity.AgentKey, fs.FileInfo, error) {
	b, info, err := readFile(name)
	if err != nil {
		return nil, nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "private key file %s cannot be read: %s", name, plain(err)).WithCause(err).
			WithHint("make a key with: postern agent keygen -f %s, and let the user that runs this program read it", name)
	}
	var key *identity.AgentKey
	if err = tooLong(b); err == nil {
		key, err = identity.ParseAgentKey(b)
	}
	if err != nil {
		return nil, nil, badKey("private key file "+name, err)
	}
	return key, info, nil
}

func badKey(what string, err error) error {
	return wire.Fail(wire.LegHub, wire.CodeBadRequest, "%s: %s", what, err).WithCause(err).
		WithHint("make a key with: postern agent keygen -f FILE")
}
