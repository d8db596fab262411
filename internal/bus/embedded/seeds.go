package embedded

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nkeys"
)

// seeds are the keys that make this bus this bus. Their JSON is what NewSeeds
// returns and Start takes.
type seeds struct {
	Version  int    `json:"version"`
	Operator string `json:"operator"`
	System   string `json:"system_account"`
	Hub      string `json:"hub_account"`
}

const seedsVersion = 1

// NewSeeds makes the keys of a new bus: of its operator, its system account and
// the hub's own account. The caller keeps them, as the secret they are, and
// hands them to every Start. They are opaque text.
func NewSeeds() ([]byte, error) {
	s := seeds{Version: seedsVersion}
	for _, k := range []struct {
		to     *string
		create func() (nkeys.KeyPair, error)
	}{{&s.Operator, nkeys.CreateOperator}, {&s.System, nkeys.CreateAccount}, {&s.Hub, nkeys.CreateAccount}} {
		seed, err := newSeed(k.create)
		if err != nil {
			return nil, err
		}
		*k.to = string(seed)
	}
	return json.Marshal(s)
}

// NewAccountSeed makes the key of an organization's account. The caller keeps
// it, as the secret it is, and hands it to EnsureAccount.
func NewAccountSeed() ([]byte, error) { return newSeed(nkeys.CreateAccount) }

func newSeed(create func() (nkeys.KeyPair, error)) ([]byte, error) {
	kp, err := create()
	if err != nil {
		return nil, fmt.Errorf("make bus key: %w", err)
	}
	defer kp.Wipe()
	seed, err := kp.Seed()
	if err != nil {
		return nil, fmt.Errorf("make bus key: %w", err)
	}
	return append([]byte(nil), seed...), nil
}

// keyPair is a key with its public part.
type keyPair struct {
	nkeys.KeyPair
	public string
}

// keyFromSeed reads the seed of an operator's or account's key.
func keyFromSeed(what string, seed []byte, kind nkeys.PrefixByte) (keyPair, error) {
	got, _, err := nkeys.DecodeSeed(seed)
	if err != nil || got != kind {
		return keyPair{}, fmt.Errorf("seed of %s is not one", what) // the cause might show the seed
	}
	kp, err := nkeys.FromSeed(seed)
	if err != nil {
		return keyPair{}, fmt.Errorf("seed of %s is not one", what)
	}
	public, err := kp.PublicKey()
	if err != nil {
		return keyPair{}, fmt.Errorf("seed of %s has no public key", what)
	}
	return keyPair{kp, public}, nil
}

// parseSeeds reads what NewSeeds wrote.
func parseSeeds(data []byte) (operator, system, hub keyPair, err error) {
	var s seeds
	if json.Unmarshal(data, &s) != nil {
		return operator, system, hub, errors.New("seeds of the bus cannot be read")
	}
	if s.Version != seedsVersion {
		return operator, system, hub, fmt.Errorf("seeds of the bus have version %d; this program knows %d", s.Version, seedsVersion)
	}
	var errs [3]error
	operator, errs[0] = keyFromSeed("the bus operator", []byte(s.Operator), nkeys.PrefixByteOperator)
	system, errs[1] = keyFromSeed("the bus's system account", []byte(s.System), nkeys.PrefixByteAccount)
	hub, errs[2] = keyFromSeed("the hub's bus account", []byte(s.Hub), nkeys.PrefixByteAccount)
	return operator, system, hub, errors.Join(errs[:]...)
}
