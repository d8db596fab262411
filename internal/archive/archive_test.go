package archive_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"postern.dev/postern/internal/archive"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type entry struct{ name, content string }

func example() []entry {
	return []entry{
		{"state/state.json", `{"product":"postern-hub"}`}, {"state/ca.key", "secret"}, {"state/keys/account-acme", ""},
		{"bus/KV_grants/info.json", "{}"}, {"bus/KV_grants/000000", "aaaa"}, {"bus/KV_grants/000001", "bb"}, {"bus/KV_registry/info.json", "{}"},
	}
}

// written returns an archive of entries.
func written(t testing.TB, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := archive.NewWriter(&b, archive.Header{TrustDomain: "a.test", Node: "hub-1", Version: "1.2.3", Created: time.Unix(1e9, 0)})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := w.Add(e.name, []byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func read(b []byte) (archive.Header, []entry, error) {
	var got []entry
	h, err := archive.Read(bytes.NewReader(b), func(name string, content []byte) error {
		got = append(got, entry{name, string(content)})
		return nil
	})
	return h, got, err
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	h, got, err := read(written(t, example()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(example(), got, cmp.AllowUnexported(entry{})); diff != "" {
		t.Error(diff)
	}
	want := archive.Header{Product: archive.Product, Format: archive.Format, Created: time.Unix(1e9, 0).UTC(), TrustDomain: "a.test", Node: "hub-1", Version: "1.2.3"}
	if h != want {
		t.Errorf("header %+v", h)
	}
}

func TestParts(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	w, err := archive.NewWriter(&b, archive.Header{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add("bus/S/info.json", nil); err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("0123456789"), archive.MaxEntry/4)
	p := w.Parts(func(n int) string { return fmt.Sprintf("bus/S/%06d", n) })
	for rest := content; len(rest) > 0; {
		n := min(len(rest), 300_001)
		if _, err := p.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := errors.Join(p.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	_, got, err := read(b.Bytes())
	var all strings.Builder
	for _, e := range got[1:] {
		all.WriteString(e.content)
	}
	if err != nil || len(got) != 4 || all.String() != string(content) {
		t.Errorf("%d entries with %d bytes, %v", len(got), all.Len(), err)
	}
}

// TestCutOff cuts an archive at every place: it is never taken for whole.
func TestCutOff(t *testing.T) {
	t.Parallel()
	whole := written(t, example())
	last := bytes.LastIndexByte(whole, '}') // what follows is padding
	for n := range whole {
		_, _, err := read(whole[:n])
		switch {
		case err == nil && n <= last:
			t.Fatalf("%d bytes of %d were taken for whole", n, len(whole))
		case err != nil && !errors.Is(err, archive.ErrTruncated) && !errors.Is(err, archive.ErrForeign):
			t.Fatalf("%d bytes of %d: %v", n, len(whole), err)
		}
	}
}

// TestFlippedBits changes single bits of what matters: none goes unnoticed.
func TestFlippedBits(t *testing.T) {
	t.Parallel()
	whole := written(t, example())
	_, want, err := read(whole)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(whole); i += 31 {
		b := bytes.Clone(whole)
		b[i] ^= 1 << (i % 8)
		if _, got, err := read(b); err == nil && cmp.Diff(want, got, cmp.AllowUnexported(entry{})) != "" {
			t.Fatalf("a changed bit of byte %d went unnoticed", i)
		}
	}
}

func TestWhatIsNotABackup(t *testing.T) {
	t.Parallel()
	header := func(h archive.Header) string {
		b, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	good := header(archive.Header{Product: archive.Product, Format: 1})
	for name, tt := range map[string]struct {
		content []byte
		want    error
	}{
		"empty":               {nil, archive.ErrForeign},
		"text":                {bytes.Repeat([]byte("hello\n"), 1000), archive.ErrForeign},
		"another tar":         {tarOf(t, tar.FormatUSTAR, entry{"README", "x"}), archive.ErrForeign},
		"another product":     {tarOf(t, tar.FormatUSTAR, entry{"postern-backup.json", `{"product":"x"}`}), archive.ErrForeign},
		"newer":               {tarOf(t, tar.FormatUSTAR, entry{"postern-backup.json", header(archive.Header{Product: archive.Product, Format: 2, Version: "9.0"})}), archive.ErrVersion},
		"path that climbs":    {tarOf(t, tar.FormatUSTAR, entry{"postern-backup.json", good}, entry{"state/../../etc/passwd", "x"}), archive.ErrCorrupt},
		"absolute path":       {tarOf(t, tar.FormatUSTAR, entry{"postern-backup.json", good}, entry{"/etc/passwd", "x"}), archive.ErrCorrupt},
		"hidden file":         {tarOf(t, tar.FormatUSTAR, entry{"postern-backup.json", good}, entry{"state/.profile", "x"}), archive.ErrCorrupt},
		"twice":               {tarOf(t, tar.FormatUSTAR, entry{"postern-backup.json", good}, entry{"state/a", "x"}, entry{"state/a", "y"}), archive.ErrCorrupt},
		"part without stream": {tarOf(t, tar.FormatUSTAR, entry{"postern-backup.json", good}, entry{"bus/S/000000", "x"}), archive.ErrCorrupt},
		"missing part":        {tarOf(t, tar.FormatUSTAR, entry{"postern-backup.json", good}, entry{"bus/S/info.json", "x"}, entry{"bus/S/000001", "x"}), archive.ErrCorrupt},
		"stream twice":        {tarOf(t, tar.FormatUSTAR, entry{"postern-backup.json", good}, entry{"bus/S/info.json", "x"}, entry{"bus/T/info.json", "x"}, entry{"bus/S/info.json", "x"}), archive.ErrCorrupt},
		"state after bus":     {tarOf(t, tar.FormatUSTAR, entry{"postern-backup.json", good}, entry{"bus/S/info.json", "x"}, entry{"state/a", "x"}), archive.ErrCorrupt},
		"other tar format":    {tarOf(t, tar.FormatPAX, entry{"postern-backup.json", good}, entry{"state/a", "x"}), archive.ErrForeign},
		"huge entry":          {huge(t), archive.ErrCorrupt},
		"no end":              {tarOf(t, tar.FormatUSTAR, entry{"postern-backup.json", good}, entry{"state/a", "x"}), archive.ErrTruncated},
		"wrong end":           {tarOf(t, tar.FormatUSTAR, entry{"postern-backup.json", good}, entry{"end.json", `{"entries":1,"sha256":""}`}), archive.ErrCorrupt},
		"something after it":  {append(written(t, example()), "more"...), archive.ErrCorrupt},
	} {
		if _, _, err := read(tt.content); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v; want %v", name, err, tt.want)
		}
	}
}

func tarOf(t *testing.T, format tar.Format, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Size: int64(len(e.content)), Mode: 0o600, Format: format}
		if format == tar.FormatPAX {
			h.PAXRecords = map[string]string{"POSTERN.x": "y"}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// huge is a short file with an entry that claims to be long.
func huge(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	head := `{"product":"postern-hub-backup","format":1}`
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "postern-backup.json", Size: int64(len(head)), Format: tar.FormatUSTAR}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, head); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "state/a", Size: 1 << 32, Format: tar.FormatUSTAR}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestEncryption(t *testing.T) {
	t.Parallel()
	one, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	plain := written(t, example())
	for name, tt := range map[string]struct{ seal, open, wrong archive.Keys }{
		"recipient": {
			archive.Keys{Recipients: []string{one.Recipient().String()}}, archive.Keys{Identities: []byte("# comment\n" + one.String() + "\n")},
			archive.Keys{Identities: []byte(other.String())},
		},
		"passphrase": {archive.Keys{Passphrase: "correct horse"}, archive.Keys{Passphrase: "correct horse"}, archive.Keys{Passphrase: "battery staple"}},
		"neither":    {archive.Keys{}, archive.Keys{}, archive.Keys{}},
	} {
		var b bytes.Buffer
		w, err := archive.Seal(&b, tt.seal)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		check := func(b []byte, k archive.Keys) error {
			r, err := archive.Open(bytes.NewReader(b), k)
			if err != nil {
				return err
			}
			_, err = archive.Verify(r)
			return err
		}
		if err := check(b.Bytes(), tt.open); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if name == "neither" {
			continue
		}
		if bytes.Contains(b.Bytes(), []byte("ca.key")) {
			t.Errorf("%s: it is not encrypted", name)
		}
		if err := check(b.Bytes(), archive.Keys{}); !errors.Is(err, archive.ErrEncrypted) {
			t.Errorf("%s: without a key: %v", name, err)
		}
		if err := check(b.Bytes(), tt.wrong); !errors.Is(err, archive.ErrWrongKey) {
			t.Errorf("%s: with a wrong key: %v", name, err)
		}
		if name == "passphrase" { // it only wraps the key, slowly
			continue
		}
		changed := bytes.Clone(b.Bytes())
		changed[len(changed)-200] ^= 1
		if err := check(changed, tt.open); !errors.Is(err, archive.ErrCorrupt) {
			t.Errorf("%s: with a changed bit: %v", name, err)
		}
		if err := check(b.Bytes()[:b.Len()-1], tt.open); !errors.Is(err, archive.ErrCorrupt) {
			t.Errorf("%s: cut off: %v", name, err)
		}
	}
	if _, err := archive.Seal(io.Discard, archive.Keys{Passphrase: "x", Recipients: []string{one.Recipient().String()}}); err == nil {
		t.Error("a passphrase and a recipient were taken together")
	}
	if _, err := archive.Seal(io.Discard, archive.Keys{Recipients: []string{"age1nonsense"}}); err == nil {
		t.Error("a recipient that is none was taken")
	}
}

// FuzzRead: whatever bytes come, a reader gives entries whose names stay below
// state/ and bus/, and ends.
func FuzzRead(f *testing.F) {
	whole := written(f, example())
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte("age-encryption.org/v1\n-> X25519 x\n"))
	long := bytes.Clone(whole)
	binary.BigEndian.PutUint64(long[600:], 1<<60)
	f.Add(long)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := archive.Open(bytes.NewReader(b), archive.Keys{Identities: nil})
		if err != nil {
			return
		}
		_, _ = archive.Read(r, func(name string, content []byte) error {
			if strings.Contains(name, "..") || strings.HasPrefix(name, "/") || strings.Contains(name, "/.") ||
				!strings.HasPrefix(name, "state/") && !strings.HasPrefix(name, "bus/") {
				t.Fatalf("an entry is called %q", name)
			}
			if len(content) > archive.MaxEntry {
				t.Fatalf("an entry has %d bytes", len(content))
			}
			return nil
		})
	})
}
