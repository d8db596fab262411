package hub

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"postern.dev/postern/internal/archive"
	"postern.dev/postern/internal/bus/embedded"
	"postern.dev/postern/internal/wholefile"
)

// The streams whose order in a backup matters.
const (
	issuedStream   = "KV_grants"
	registryStream = "KV_registry"
)

// Backup writes all of a hub's state to w as an archive, while the hub works. It
// holds every secret of the hub. Changes that are made meanwhile may be in it or
// not; what had been revoked before it began, is in it as revoked.
func Backup(ctx context.Context, w io.Writer, s *State, bus *embedded.Server, version string) error {
	out, err := archive.NewWriter(w, archive.Header{TrustDomain: s.TrustDomain(), Node: s.Node(), Version: version, Created: time.Now()})
	if err != nil {
		return err
	}
	files, err := s.files()
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := out.Add("state/"+f.name, f.content); err != nil {
			return err
		}
	}
	streams, err := bus.Streams(ctx)
	if err != nil {
		return err
	}
	// The registry comes last. At a start, issuances whose ground it does not have are
	// revoked: so a token that is deleted between the two is not brought back.
	slices.SortStableFunc(streams, func(a, b string) int { return cmp.Compare(streamRank(a), streamRank(b)) })
	for _, name := range streams {
		if err := backupStream(ctx, out, bus, name); err != nil {
			return err
		}
	}
	return out.Close()
}

func streamRank(name string) int {
	switch name {
	case issuedStream:
		return 0
	case registryStream:
		return 2
	default:
		return 1
	}
}

func backupStream(ctx context.Context, out *archive.Writer, bus *embedded.Server, name string) error {
	n, err := bus.Snapshot(ctx, name)
	if err != nil {
		return err
	}
	defer n.Close()
	if err := out.Add("bus/"+name+"/info.json", n.Info); err != nil {
		return err
	}
	parts := out.Parts(func(part int) string { return fmt.Sprintf("bus/%s/%06d", name, part) })
	if _, err := n.WriteTo(parts); err != nil {
		return err
	}
	return parts.Close()
}

// savedFile is a file of a state directory in a backup.
type savedFile struct {
	name    string // with slashes
	content []byte
}

// files returns the files of the directory as they are at one moment, without the
// bus's.
func (s *State) files() ([]savedFile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	record, err := json.MarshalIndent(s.record, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	all := []savedFile{{stateFile, append(record, '\n')}}
	err = filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(s.dir, path)
		name := filepath.ToSlash(rel)
		switch {
		case err != nil:
			return err
		case d.IsDir() && (name == busDir || busCopies.MatchString(name) || strings.HasPrefix(d.Name(), ".") && name != "." || name == "lost+found"):
			return fs.SkipDir
		case !d.Type().IsRegular() || wholefile.IsLeftover(d.Name()) || name == stateFile || slices.Contains(s.record.Remove, rel):
			return nil
		}
		_, known := s.record.Files[rel]
		b, err := readPrivate(path)
		switch {
		case !known && (!archive.IsName("state/"+name) || errors.Is(err, ErrStateExposed)):
			return nil // not one of ours
		case errors.Is(err, fs.ErrNotExist) && !known:
			return nil // it went just now
		}
		all = append(all, savedFile{name, b})
		return err
	})
	return all, err
}

// BackupDir is Backup of a directory on which no hub runs.
func BackupDir(ctx context.Context, w io.Writer, dir, busKeyFile, version string, log *slog.Logger) error {
	if err := existingState(dir); err != nil {
		return err
	}
	s, err := OpenState(dir, StateOptions{BusKeyFile: busKeyFile, Log: log})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	seeds, err := s.busSeeds()
	if err != nil {
		return err
	}
	bus, err := embedded.Start(s.busConfig(log), seeds)
	if err != nil {
		return err
	}
	defer bus.Shutdown()
	return Backup(ctx, w, s, bus, version)
}
