package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"postern.dev/postern/internal/registry"
)

// secretText stands in every value of fill, to look for it on disk.
const secretText = "confidential-content"

// fill writes some values to two buckets and returns what a reader must find.
func fill(t *testing.T, s *Server) map[string]string {
	t.Helper()
	want := make(map[string]string)
	for _, bucket := range []string{"registry", "grants"} {
		kv, err := s.KV(t.Context(), bucket)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 50 {
			key, value := fmt.Sprintf("item.%d", i), strings.Repeat(secretText, 1+i*20)
			revision, err := kv.Create(t.Context(), key, []byte("first"))
			if err != nil {
				t.Fatal(err)
			}
			if revision, err = kv.Update(t.Context(), key, []byte(value), revision); err != nil {
				t.Fatal(err)
			}
			want[bucket+"/"+key] = fmt.Sprint(revision, value)
		}
		if err := kv.Delete(t.Context(), "item.7"); err != nil {
			t.Fatal(err)
		}
		delete(want, bucket+"/item.7")
	}
	return want
}

// hollow makes a bucket that nothing was ever written to, and one of which all was
// deleted.
func hollow(t *testing.T, s *Server) {
	t.Helper()
	if _, err := s.KV(t.Context(), "empty"); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(s.hubConn)
	if err != nil {
		t.Fatal(err)
	}
	purged, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "purged"})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := purged.Put(t.Context(), "a", []byte(secretText)); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := js.Stream(t.Context(), "KV_purged")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	// One of several blocks, without its first messages, and with a consumer that has
	// come half way.
	long, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "long", Subjects: []string{"long"}, MaxMsgs: 400})
	if err != nil {
		t.Fatal(err)
	}
	for range 600 {
		if _, err := js.PublishAsync("long", bytes.Repeat([]byte(secretText), 500)); err != nil {
			t.Fatal(err)
		}
	}
	<-js.PublishAsyncComplete()
	half, err := long.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "export"})
	if err != nil {
		t.Fatal(err)
	}
	batch, err := half.Fetch(100)
	if err != nil {
		t.Fatal(err)
	}
	for m := range batch.Messages() {
		if err := m.DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	states, err := s.states(t.Context())
	if err != nil || states["long"].Consumers != "export:300:300" || states["long"].Messages != 400 || states["KV_purged"] != (streamState{First: 4, Last: 3}) || states["KV_empty"] != (streamState{First: 1}) {
		t.Fatalf("states %+v, %v", states, err)
	}
}

// compare checks that a server's buckets hold what fill wrote, with the revisions.
func compare(t *testing.T, s *Server, want map[string]string) {
	t.Helper()
	for _, bucket := range []string{"registry", "grants"} {
		kv, err := s.KV(t.Context(), bucket)
		if err != nil {
			t.Fatal(err)
		}
		keys, err := kv.List(t.Context(), "")
		if err != nil || len(keys) != len(want)/2 {
			t.Errorf("bucket %s has %d keys, %v; want %d", bucket, len(keys), err, len(want)/2)
		}
		if _, _, err := kv.Get(t.Context(), "item.7"); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("what was deleted: %v", err)
		}
		for _, key := range keys {
			v, revision, err := kv.Get(t.Context(), key)
			if got := fmt.Sprint(revision, string(v)); err != nil || got != want[bucket+"/"+key] {
				t.Errorf("%s/%s is %.40q, %v; want %.40q", bucket, key, got, err, want[bucket+"/"+key])
			}
		}
		if _, err := kv.Create(t.Context(), "new", nil); err != nil {
			t.Errorf("write to %s: %v", bucket, err)
		}
	}
}

// inTheClear returns the files below a directory that hold what fill wrote.
func inTheClear(t *testing.T, dir string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		if bytes.Contains(b, []byte(secretText)) {
			found = append(found, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestSnapshotAndRestore(t *testing.T) {
	c, seeds := newConfig(t)
	s := start(t, c, seeds)
	want := fill(t, s)
	hollow(t, s)
	names, err := s.Streams(t.Context())
	if err != nil || !slices.Equal(names, []string{"KV_empty", "KV_grants", "KV_purged", "KV_registry", "long"}) {
		t.Fatalf("streams %v, %v", names, err)
	}
	before, err := s.states(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	type saved struct {
		info    []byte
		content bytes.Buffer
	}
	all := make(map[string]*saved)
	for _, name := range names {
		n, err := s.Snapshot(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		one := &saved{info: n.Info}
		if _, err := n.WriteTo(&one.content); err != nil {
			t.Fatal(err)
		}
		all[name] = one
	}
	if _, err := s.Snapshot(t.Context(), "nothing"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("a stream that is not there: %v", err)
	}
	s.Shutdown()

	other := c
	other.Dir, other.EncryptionKey, other.Node = filepath.Join(t.TempDir(), "bus"), newKey(), "two"
	s = start(t, other, seeds)
	for name, one := range all {
		if err := s.Restore(t.Context(), name, one.info, bytes.NewReader(one.content.Bytes())); err != nil {
			t.Error(err)
		}
		if err := s.Restore(t.Context(), name, one.info, bytes.NewReader(one.content.Bytes())); err == nil {
			t.Error("a stream that exists was restored over")
		}
		half := one.content.Bytes()[:one.content.Len()/2]
		broken := strings.ReplaceAll(string(one.info), name, name+"x")
		if err := s.Restore(t.Context(), name+"x", []byte(broken), bytes.NewReader(half)); err == nil {
			t.Error("half a stream was restored")
		}
	}
	s.Shutdown()
	if found := inTheClear(t, other.Dir); found != nil {
		t.Errorf("in the clear on disk: %v", found)
	}
	s = start(t, other, seeds)
	defer s.Shutdown()
	after, err := s.states(t.Context())
	if diff := cmp.Diff(before, after); err != nil || diff != "" {
		t.Errorf("streams and consumers, %v:\n%s", err, diff)
	}
	compare(t, s, want)
}

func TestRekey(t *testing.T) {
	c, seeds := newConfig(t)
	s := start(t, c, seeds)
	want := fill(t, s)
	hollow(t, s)
	s.Shutdown()
	next := c
	next.Dir, next.EncryptionKey = filepath.Join(filepath.Dir(c.Dir), "next"), newKey()
	for range 2 { // the second replaces what the first left, as after a crash
		if err := Rekey(t.Context(), c, seeds, next.Dir, next.EncryptionKey); err != nil {
			t.Fatal(err)
		}
	}
	if found := inTheClear(t, next.Dir); found != nil {
		t.Errorf("in the clear on disk: %v", found)
	}
	s = start(t, next, seeds)
	compare(t, s, want)
	s.Shutdown()
	s = start(t, c, seeds) // the store itself stays as it was
	compare(t, s, want)
	s.Shutdown()

	wrong := c
	wrong.EncryptionKey = newKey()
	if err := Rekey(t.Context(), wrong, seeds, next.Dir, newKey()); !errors.Is(err, ErrWrongKey) {
		t.Errorf("with a wrong key: %v", err)
	}
	if err := Rekey(t.Context(), Config{Dir: t.TempDir(), EncryptionKey: newKey(), Node: "x"}, seeds, next.Dir, newKey()); !errors.Is(err, ErrForeign) {
		t.Errorf("of a directory that is no store: %v", err)
	}
	if err := Rekey(t.Context(), c, seeds, next.Dir, []byte("short")); err == nil {
		t.Error("a short key was taken")
	}
}
