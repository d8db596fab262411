package policy

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// fakeFile is a policy file without a disk.
type fakeFile struct{ content atomic.Pointer[string] }

func (f *fakeFile) write(s string) { f.content.Store(&s) }
func (f *fakeFile) remove()        { f.content.Store(nil) }

func (f *fakeFile) read() ([]byte, error) {
	if s := f.content.Load(); s != nil {
		return []byte(*s), nil
	}
	return nil, &fs.PathError{Op: "open", Path: "p", Err: fs.ErrNotExist}
}

// watched is what a Watcher told.
type watched struct {
	mu       sync.Mutex
	applied  []string
	rejected []string
}

func (w *watched) apply(list []Entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var texts []string
	for _, e := range list {
		texts = append(texts, e.String())
	}
	w.applied = append(w.applied, strings.Join(texts, "; "))
}

func (w *watched) reject(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rejected = append(w.rejected, err.Error())
}

// told returns what was told since the last call.
func (w *watched) told() (applied, rejected string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	applied, rejected = strings.Join(w.applied, " | "), strings.Join(w.rejected, " | ")
	w.applied, w.rejected = nil, nil
	return applied, rejected
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var file fakeFile
		file.write("allow: [tcp:a:1]")
		w := &Watcher{Path: "p", Read: file.read}
		if _, err := w.Load(); err != nil {
			t.Fatal(err)
		}
		var got watched
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { w.Run(ctx, got.apply, got.reject) })
		for i, step := range []struct {
			change            func()
			applied, rejected string
		}{
			{func() {}, "", ""},
			{func() { file.write("allow: [tcp:b:1]") }, "allow tcp:b:1", ""},
			{func() { file.write("allow: [b]") }, "", `p:1: rule "b"`},
			{func() {}, "", ""},
			{func() { file.write("allow: [tcp:b:1]") }, "allow tcp:b:1", ""}, // so that the rejection is taken back
			{func() { file.write("") }, "", "p: holds no policy"},
			{file.remove, "", "p: cannot be read: file does not exist"},
			{func() { file.write("allow: [tcp:c:1]") }, "allow tcp:c:1", ""},
			{func() { // it is being written: nothing that stands for a moment counts
				for _, s := range []string{"", "allow:", "allow: [tcp:d:1]\n", "allow: [tcp:e:1]\n"} {
					file.write(s)
					time.Sleep(pollEvery - time.Millisecond)
				}
			}, "allow tcp:e:1", ""},
		} {
			step.change()
			time.Sleep(2 * time.Second)
			synctest.Wait()
			applied, rejected := got.told()
			if applied != step.applied || !strings.Contains(rejected, step.rejected) || (rejected == "") != (step.rejected == "") {
				t.Errorf("step %d: applied %q, rejected %q", i, applied, rejected)
			}
		}
		cancel()
		wg.Wait()
	})
}

// version is one version of a file, and how long it lasts.
type version struct {
	text   string
	means  string // "" when it cannot be used
	lasts  time.Duration
	steady bool
}

func anyVersion() *rapid.Generator[version] {
	return rapid.Custom(func(t *rapid.T) version {
		e := anyEntry().Draw(t, "entry")
		e.From = nil
		verb, rule, _ := strings.Cut(e.String(), " ")
		v := version{text: verb + ": ['" + rule + "']", means: e.String(), lasts: pollEvery / 2}
		switch rapid.IntRange(0, 4).Draw(t, "kind") {
		case 0:
			v.text, v.means = v.text[:rapid.IntRange(0, len(v.text)-1).Draw(t, "cut")], ""
		case 1:
			v.text, v.means = v.text+"\nalow: []", ""
		}
		if v.steady = rapid.Bool().Draw(t, "steady"); v.steady {
			v.lasts = 2 * time.Second
		}
		return v
	})
}

// TestReloadNeverWidens: whatever versions a file goes through, what is in force is
// at every moment the last version that was good for some time; never a part of one,
// nor two at once.
func TestReloadNeverWidens(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		versions := rapid.SliceOfN(anyVersion(), 1, 8).Draw(rt, "versions")
		problem := ""
		synctest.Test(t, func(t *testing.T) { problem = live(t, versions) })
		if problem != "" {
			rt.Fatal(problem)
		}
	})
}

// live lets a watched file go through versions and says what went wrong.
func live(t *testing.T, versions []version) (problem string) {
	var file fakeFile
	file.write("allow: [tcp:first:1]")
	w := &Watcher{Path: "p", Read: file.read}
	if _, err := w.Load(); err != nil {
		return err.Error()
	}
	inForce := "allow tcp:first:1"
	var got watched
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.Run(ctx, got.apply, got.reject) })
	defer wg.Wait()
	defer cancel()
	for _, v := range versions {
		file.write(v.text)
		time.Sleep(v.lasts)
		synctest.Wait()
		applied, _ := got.told()
		switch {
		case applied != "" && applied != v.means:
			return v.text + " puts " + applied + " in force"
		case applied != "":
			inForce = applied
		case v.steady && v.means != "" && inForce != v.means:
			return v.text + " is not in force"
		}
	}
	return ""
}

// TestWatchFollowsLinks changes a file as a mounted ConfigMap changes: by the
// symbolic link of the directory that it stands in.
func TestWatchFollowsLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put := func(version, text string) {
		t.Helper()
		err := errors.Join(os.Mkdir(filepath.Join(dir, version), 0o700),
			os.WriteFile(filepath.Join(dir, version, "policy.yaml"), []byte(text), 0o600),
			os.Symlink(version, filepath.Join(dir, "..data_tmp")),
			os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
		if err != nil {
			t.Fatal(err)
		}
	}
	put("..v1", "allow: [tcp:a:1]")
	path := filepath.Join(dir, "policy.yaml")
	if err := os.Symlink(filepath.Join("..data", "policy.yaml"), path); err != nil {
		t.Fatal(err)
	}
	w := &Watcher{Path: path}
	if _, err := w.Load(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	applied := make(chan string, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		w.Run(ctx, func(list []Entry) { applied <- list[0].String() }, func(err error) { t.Error(err) })
	})
	start := time.Now()
	put("..v2", "allow: [tcp:b:1]")
	if got := <-applied; got != "allow tcp:b:1" {
		t.Errorf("applied %q", got)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("a change was found after %v", took)
	}
	cancel()
	wg.Wait()
}
