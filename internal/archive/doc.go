// Package archive is the file that a hub's backup is: what it holds in which
// order, how it is written, checked and read, and how it is encrypted. It knows
// nothing of what the entries mean.
//
// An archive is a tar file (USTAR), so that a person can look into it:
//
//	postern-backup.json     what this is: product, format, hub, time
//	state/FILE              a file of the hub's directory
//	bus/STREAM/info.json    what the bus needs to make a stream again
//	bus/STREAM/000000 …     its content, in parts
//	end.json                how many entries there were, and the SHA-256 of all
//
// Without end.json an archive was cut off. All of it may be inside an age file
// (age-encryption.org/v1), which also keeps others from changing it unseen; the
// checksum alone finds accidents, not attackers.
package archive

import (
	"errors"
	"regexp"
	"time"
)

// Product and Format are what a Header of this version says.
const (
	Product = "postern-hub-backup"
	Format  = 1
)

// Limits of an archive. They bound what a reader does for one that somebody
// made to harm it.
const (
	MaxEntry   = 1 << 20 // bytes of one entry
	maxEntries = 1 << 20 // so that an archive has a tebibyte at most
	maxHeader  = 16 << 10
)

const (
	headerName = "postern-backup.json"
	endName    = "end.json"
)

// Why an archive cannot be used.
var (
	ErrForeign   = errors.New("this is not a backup of a hub")
	ErrVersion   = errors.New("the backup was made by a newer version")
	ErrTruncated = errors.New("the backup is cut off")
	ErrCorrupt   = errors.New("the backup is damaged")
	ErrEncrypted = errors.New("the backup is encrypted")
	ErrWrongKey  = errors.New("the backup is encrypted for another key or passphrase")
)

// Header says what an archive is of.
type Header struct {
	Product     string    `json:"product"`
	Format      int       `json:"format"`
	Created     time.Time `json:"created"`
	TrustDomain string    `json:"trustDomain"`
	Node        string    `json:"node"`
	Version     string    `json:"version"` // of the program that made it
}

// end is end.json.
type end struct {
	Entries int    `json:"entries"` // the header's included
	SHA256  string `json:"sha256"`  // of each entry's name, size and content; see digest
}

// entryName matches the names that entries may have. None leads out of a
// directory.
var entryName = regexp.MustCompile(`^(state/[A-Za-z0-9][A-Za-z0-9._-]{0,90}(/[A-Za-z0-9][A-Za-z0-9._-]{0,120})?|bus/[A-Za-z0-9_-]{1,64}/(info\.json|[0-9]{6}))$`)

// IsName reports whether an entry may have a name.
func IsName(name string) bool { return entryName.MatchString(name) }
