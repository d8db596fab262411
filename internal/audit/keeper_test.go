package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Journal and Heads in memory, which can be made to fail.
type memory struct {
	mu     sync.Mutex
	blocks map[string][]Block
	gone   map[string]int // blocks that vanished, from the first on
	heads  map[string]Head
	fail   error
	after  bool // fail after the block was stored
	block  chan struct{}
}

func newMemory() *memory {
	return &memory{blocks: map[string][]Block{}, gone: map[string]int{}, heads: map[string]Head{}}
}

func (m *memory) set(err error, after bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail, m.after = err, after
}

func (m *memory) Append(_ context.Context, chain string, last uint64, lines []byte) (uint64, error) {
	m.mu.Lock()
	wait := m.block
	m.mu.Unlock()
	if wait != nil {
		<-wait
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil && !m.after {
		return 0, m.fail
	}
	if uint64(len(m.blocks[chain])) != last {
		return 0, ErrPosition
	}
	m.blocks[chain] = append(m.blocks[chain], Block{Position: last + 1, Stored: time.Now(), Lines: bytes.Clone(lines)})
	if m.fail != nil {
		return 0, m.fail
	}
	return last + 1, nil
}

func (m *memory) Read(_ context.Context, chain string, after uint64, maxBytes int) ([]Block, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.blocks[chain]
	from := max(int(after), m.gone[chain])
	var out []Block
	for _, b := range all[min(from, len(all)):] {
		out = append(out, b)
		if maxBytes -= len(b.Lines); maxBytes <= 0 {
			break
		}
	}
	return out, nil
}

func (m *memory) Bounds(_ context.Context, chain string) (uint64, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return uint64(m.gone[chain]) + 1, uint64(len(m.blocks[chain])), nil
}

func (m *memory) Chains(context.Context) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []string
	for chain := range m.blocks {
		all = append(all, chain)
	}
	return all, nil
}

func (m *memory) LoadHead(chain string) (Head, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.heads[chain], nil
}

func (m *memory) SaveHead(chain string, h Head) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heads[chain] = h
	return nil
}

// lines returns a chain's lines.
func (m *memory) lines(chain string) (all [][]byte) {
	blocks, _ := m.Read(context.Background(), chain, 0, 1<<30)
	for _, b := range blocks {
		all = slices.AppendSeq(all, b.Entries())
	}
	return all
}

func (m *memory) entries(t *testing.T, chain string) (all []Entry) {
	t.Helper()
	for _, line := range m.lines(chain) {
		e, err := ParseEntry(line)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

// counted is a Metrics.
type counted struct {
	noMetrics
	mu       sync.Mutex
	dropped  int
	repeated int
	failed   int
}

func (c *counted) Dropped(n int)  { c.mu.Lock(); c.dropped += n; c.mu.Unlock() }
func (c *counted) Repeated(n int) { c.mu.Lock(); c.repeated += n; c.mu.Unlock() }
func (c *counted) Failed(error)   { c.mu.Lock(); c.failed++; c.mu.Unlock() }

type bench struct {
	*memory
	*Keeper
	*counted
	signer *Signer
	stop   func()
}

func run(t *testing.T, m *memory, s *Signer) *bench {
	b := &bench{memory: m, counted: &counted{}, signer: s}
	b.Keeper = NewKeeper(KeeperConfig{Journal: m, Heads: m, Signer: s, Metrics: b.counted, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.Keeper.Run(ctx)
	}()
	b.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(b.stop)
	return b
}

// whole verifies a chain, to its saved head.
func (b *bench) whole(t *testing.T, chain string) Report {
	t.Helper()
	key, err := ParsePublicKey(publicKey(t, b.signer))
	if err != nil {
		t.Fatal(err)
	}
	head, _ := b.LoadHead(chain)
	report, err := verify(b.lines(chain), &Verifier{Key: key, Known: []Head{head}})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestKeeperWritesChains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := newMemory(), newSigner(t)
		b := run(t, m, s)
		for i := range 1000 {
			b.Record(Record{Organization: []string{"a", "b", "", "No Name"}[i%4], Action: Open, Target: fmt.Sprint(i)})
		}
		time.Sleep(pace)
		synctest.Wait()
		if n := len(m.entries(t, "a")); n != 250 {
			t.Errorf("%d records of a", n)
		}
		if n := len(m.entries(t, "")); n != 500 {
			t.Errorf("%d records of the hub", n)
		}
		time.Sleep(2 * signWithin)
		for _, chain := range []string{"a", "b", ""} {
			if r := b.whole(t, chain); r.Signed != r.Last {
				t.Errorf("%+v", r)
			}
		}
		b.Record(Record{Organization: "a", Action: Close})
		b.stop()
		if r := b.whole(t, "a"); r.Signed != 253 {
			t.Errorf("after the end: %+v", r)
		}
		b.Record(Record{Organization: "a"}) // too late, and no panic
		if b.dropped != 1 {
			t.Error("a late record is not counted")
		}

		// Another process goes on from there.
		b = run(t, m, s)
		b.Record(Record{Organization: "a", Action: Open})
		synctest.Wait()
		b.stop()
		if r := b.whole(t, "a"); r.Last != 255 {
			t.Errorf("%+v", r)
		}
		if b.Head("a") != b.whole(t, "a").Head {
			t.Error("the head told is not the chain's")
		}
	})
}

func TestKeeperSignsWhatACrashLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := newMemory(), newSigner(t)
		head := Head{}
		var block []byte
		for range 3 {
			block, head = head.Seal(block, &Record{Organization: "a", ID: "x", Reporter: ByHub, Action: Open})
			block = append(block, '\n')
		}
		_, _ = m.Append(t.Context(), "a", 0, block)
		b := run(t, m, s)
		time.Sleep(2 * signWithin)
		if r := b.whole(t, "a"); r.Signed != 4 {
			t.Errorf("%+v", r)
		}
	})
}

func TestKeeperDoesNotHideThatTheEndIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := newMemory(), newSigner(t)
		b := run(t, m, s)
		for range 3 {
			b.Record(Record{Organization: "a", Action: Open})
			time.Sleep(2 * signWithin)
		}
		b.stop()
		m.blocks["a"] = m.blocks["a"][:2]
		b = run(t, m, s)
		b.Record(Record{Organization: "a", Action: Open})
		time.Sleep(2 * signWithin)
		key, _ := ParsePublicKey(publicKey(t, s))
		_, err := verify(m.lines("a"), &Verifier{Key: key})
		broken, ok := errors.AsType[*Broken](err)
		if !ok || broken.Sequence != 3 {
			t.Errorf("%v", err)
		}
		b.stop()
		// Where all is older than it is kept, the chain goes on without a fault.
		m.blocks["a"], m.gone["a"] = m.blocks["a"][:2], 2
		last := m.heads["a"]
		b = run(t, m, s)
		b.Record(Record{Organization: "a", Action: Open})
		b.stop()
		if r := b.whole(t, "a"); r.First != last.Sequence+1 {
			t.Errorf("%+v after %+v", r, last)
		}
	})
}

func TestKeeperOutlastsItsStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		b := run(t, m, newSigner(t))
		m.set(errors.New("the disk is full"), false)
		for range 10 {
			b.Record(Record{Organization: "a", Action: Open})
		}
		time.Sleep(time.Hour)
		m.set(errors.New("timeout"), true) // it was stored, but nobody heard
		time.Sleep(time.Minute)
		m.set(nil, false)
		b.Record(Record{Organization: "a", Action: Close})
		time.Sleep(2 * signWithin)
		if r := b.whole(t, "a"); r.Last != 12 && r.Last != 13 { // with one checkpoint, or two
			t.Errorf("%+v", r)
		}
		if b.counted.failed == 0 {
			t.Error("failures are not counted")
		}
	})
}

// TestKeeperNeverBlocks floods a keeper whose store stands still.
func TestKeeperNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.block = make(chan struct{})
		b := run(t, m, newSigner(t))
		const flood = 40_000
		for range flood {
			b.Record(Record{Organization: "a", Action: Open})
		}
		b.Record(Record{Organization: "b", Action: Open}) // there is still room for others
		if b.queued > maxQueued || b.dropped != flood-maxOfOne {
			t.Errorf("%d in memory, %d dropped", b.queued, b.dropped)
		}
		if err := b.Put(t.Context(), []Record{{ID: "1", Organization: "a", Action: Open}}); !errors.Is(err, ErrFull) {
			t.Errorf("Put into a full queue: %v", err)
		}
		close(m.block)
		synctest.Wait()
		b.stop()
		b.whole(t, "a")
		var lost uint64
		for _, e := range m.entries(t, "a") {
			if e.Action == Lost {
				lost += e.Count
			}
		}
		if lost != flood-maxOfOne {
			t.Errorf("the log says that %d records are missing, of %d", lost, flood-maxOfOne)
		}
		if n := len(m.entries(t, "b")); n != 2 {
			t.Errorf("%d records of b", n)
		}
	})
}

func TestPutTwiceIsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := newMemory(), newSigner(t)
		batch := func(agent string) []Record {
			return []Record{
				{ID: "1", Organization: "a", Reporter: ByAgent, Agent: agent, Action: Open},
				{ID: "2", Organization: "a", Reporter: ByAgent, Agent: agent, Action: Close},
			}
		}
		b := run(t, m, s)
		for range 3 {
			if err := b.Put(t.Context(), batch("x")); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Put(t.Context(), batch("y")); err != nil { // another agent's IDs are its own
			t.Fatal(err)
		}
		b.stop()
		b = run(t, m, s) // an agent that missed the acknowledgement tries the next hub
		if err := b.Put(t.Context(), batch("x")); err != nil {
			t.Fatal(err)
		}
		b.stop()
		n := 0
		for _, e := range m.entries(t, "a") {
			if e.Action != Checkpoint {
				n++
			}
		}
		if n != 4 {
			t.Errorf("%d records; want 4", n)
		}
		b.whole(t, "a")
	})
}

func TestPutIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.set(errors.New("no"), false)
		b := run(t, m, newSigner(t))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		records := []Record{{ID: "1", Organization: "a", Action: Open}}
		if err := b.Put(ctx, records); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		m.set(nil, false)
		if err := b.Put(t.Context(), records); err != nil {
			t.Error(err)
		}
		b.stop()
		if r := b.whole(t, "a"); r.Last != 2 {
			t.Errorf("%+v: want the record once, and a checkpoint", r)
		}
	})
}

func TestSeek(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		begin := time.Now()
		for i := range 50 {
			_, _ = m.Append(t.Context(), "a", uint64(i), []byte("x\n"))
			time.Sleep(time.Second)
		}
		for _, gone := range []int{0, 7} {
			m.gone["a"] = gone
			for i := range 60 {
				at, err := Seek(t.Context(), m, "a", begin.Add(time.Duration(i)*time.Second))
				if want := uint64(min(max(i, gone), 50)); err != nil || at != want {
					t.Errorf("second %d, %d gone: %d, %v; want %d", i, gone, at, err, want)
				}
			}
		}
		if at, err := Seek(t.Context(), m, "none", begin); at != 0 || err != nil {
			t.Errorf("an empty chain: %d, %v", at, err)
		}
	})
}

func TestFloodIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []Record
		var mu sync.Mutex
		f := NewFlood(recorderFunc(func(r Record) { mu.Lock(); got = append(got, r); mu.Unlock() }), nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); f.Run(ctx) }()
		for range 1000 {
			f.Record(Record{Action: SignIn, Source: "192.0.2.1", Code: "unauthenticated"})
		}
		f.Record(Record{Action: SignIn, Source: "192.0.2.2", Code: "unauthenticated"})
		time.Sleep(2 * floodWindow)
		synctest.Wait()
		if len(got) != 3 || got[2].Count != 999 {
			t.Errorf("%+v", got)
		}
		got = nil
		for i := range 100_000 {
			f.Record(Record{Action: SignIn, Source: fmt.Sprint(i), Organization: "x"})
		}
		if len(f.all) > floodSources+1 {
			t.Errorf("%d sources in memory", len(f.all))
		}
		cancel()
		<-done
		sum := uint64(0)
		for _, r := range got {
			sum += max(r.Count, 1)
		}
		if sum != 100_000 || len(got) > 2*floodSources {
			t.Errorf("%d records for %d refusals", len(got), sum)
		}
	})
}

type recorderFunc func(Record)

func (f recorderFunc) Record(r Record) { f(r) }
