package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

// figure is something to measure. One sample of it may give several metrics.
type figure struct {
	name string
	path path
	who  []string // who takes part
	// fresh processes for every sample, because what an earlier one left in
	// their memory would count
	fresh  bool
	sample func(ctx context.Context, s sampler) error
}

// sampler is what one sample gets: whom to measure and where to put the values.
type sampler struct {
	*bench
	world  *world
	dial   dialer
	record func(metric string, value float64)
}

// Metrics are the rows of the report. The two of a process have its name behind
// them, in parentheses.
const (
	mDownload     = "one download"
	mUpload       = "one upload"
	mEight        = "eight downloads at once"
	mEchoP50      = "echo of 64 bytes, p50"
	mEchoP99      = "echo of 64 bytes, p99"
	mBusyP50      = "echo beside 4 downloads, p50"
	mBusyP99      = "echo beside 4 downloads, p99"
	mOpens16      = "opens per second, 16 workers"
	mOpens1       = "opens per second, 1 worker"
	mStalled      = "download beside 8 stalled readers"
	mStalledRatio = "… of the undisturbed download"
	mFarDown      = "80 ms, 800 Mb/s: one download"
	mFarUp        = "80 ms, 800 Mb/s: one upload"
	mSharedP50    = "200 Mb/s, 20 ms, shared: echo p50"
	mSharedP99    = "200 Mb/s, 20 ms, shared: echo p99"
	mCPUDown      = "processor time, one download"
	mCPUUp        = "processor time, one upload"
	mCPUOpen      = "processor time, one open of 16 workers"
	mIdle         = "memory per idle stream"
	mLists        = "gateway: lists of 5,000 pods per second"
	mListsGzip    = "gateway: the same, compressed"
	mGetP50       = "gateway: get of one pod, p50"
	mGetP99       = "gateway: get of one pod, p99"
	mKubectls     = "gateway: gets per second, 50 clients with their own connections"
	mCPUGet       = "gateway: processor time, one get"
	mCPUOwn       = "gateway: processor time, one get with a connection of its own"
	mCPUExec      = "gateway: processor time, one exec"
	mExecs        = "gateway: execs per second, 100 at once"
	mRealGets     = "gateway: kubectl get, 50 processes at once, per second"
	mRealExecs    = "gateway: kubectl exec, 100 processes at once, per second"
	mEvents       = "gateway: events per second of 200 watches"
	mEventP99     = "gateway: an event's way, p99"
	mWatching     = "gateway: memory per idle watch"
)

// far is a long way with a fast line for each connection: a window that is too
// small shows.
var far = path{delay: 40 * time.Millisecond, rate: 100_000_000}

// narrow is one line for all connections, with the queue of an ordinary router:
// what a small message has to wait for shows.
var narrow = path{delay: 10 * time.Millisecond, rate: 25_000_000, shared: true}

// overPaths are the contenders for the figures that need a link.
var overPaths = []string{"direct", "yamux", "hub", "separate"}

// ports leaves out CONNECT and SOCKS5 where only the open could make a
// difference and opens are not measured.
var ports = []string{"direct", "plain", "tls", "yamux", "hub", "separate"}

// tunnels are the ways of a connection; the gateway's are of requests.
var (
	tunnels = []string{"direct", "plain", "tls", "yamux", "hub", "separate", "connect", "socks5"}
	apis    = []string{"api", "gateway"}
)

var figures = []figure{
	{name: "download", who: tunnels, sample: sampleDownload},
	{name: "upload", who: ports, sample: sampleUpload},
	{name: "eight", who: ports, sample: sampleEight},
	{name: "echo", who: tunnels, sample: sampleEcho},
	{name: "busy", who: ports, sample: sampleBusy},
	{name: "opens", who: tunnels, sample: sampleOpens},
	{name: "stalled", who: ports, sample: sampleStalled},
	{name: "far", path: far, who: overPaths, sample: sampleFar},
	{name: "shared", path: narrow, who: overPaths, sample: sampleShared},
	{name: "idle", fresh: true, who: []string{"plain", "tls", "yamux", "hub", "separate"}, sample: sampleIdle},
	{name: "lists", who: apis, sample: sampleLists},
	{name: "gets", who: apis, sample: sampleGets},
	{name: "execs", who: apis, sample: sampleExecs},
	{name: "kubectl", who: apis, sample: sampleKubectl},
	{name: "watches", who: apis, sample: sampleWatches},
	{name: "watching", fresh: true, who: []string{"gateway"}, sample: sampleWatching},
}

func figureNames() []string {
	names := make([]string, 0, len(figures))
	for _, f := range figures {
		names = append(names, f.name)
	}
	return names
}

// measure takes all samples of a figure: A B C, A B C, and so on, so that
// whatever else the machine does falls on all alike.
func (b *bench) measure(ctx context.Context, f figure, cons []contender, res *result) error {
	for round := range b.opts.rounds {
		for _, c := range cons {
			if !slices.Contains(f.who, c.name) {
				continue
			}
			values, err := b.sampleOnce(ctx, f, c)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				res.fail(f.name, c.name, round, err)
				text, _, _ := strings.Cut(err.Error(), "\n")
				progress("%-9s %d/%d %-9s FAILED: %s", f.name, round+1, b.opts.rounds, c.name, text)
				continue
			}
			var line strings.Builder
			for _, v := range values {
				res.add(v.metric, c.name, round, v.value)
				fmt.Fprintf(&line, "  %.4g %s", v.value, unitOf(v.metric).name)
			}
			progress("%-9s %d/%d %-9s%s", f.name, round+1, b.opts.rounds, c.name, line.String())
		}
	}
	if f.path != (path{}) {
		b.dropWorlds(f.path)
	}
	return nil
}

// value is one metric of one sample.
type value struct {
	metric string
	value  float64
}

func (b *bench) sampleOnce(ctx context.Context, f figure, c contender) (values []value, err error) {
	var w *world
	if f.fresh {
		if w, err = b.newWorld(ctx, c.world, f.path); err == nil {
			defer w.stop()
		}
	} else {
		w, err = b.world(ctx, c.world, f.path)
	}
	if err != nil {
		return nil, err
	}
	s := sampler{bench: b, world: w, dial: w.entrances[c.enter]}
	s.record = func(metric string, v float64) { values = append(values, value{metric, v}) }
	if err := f.sample(ctx, s); err != nil {
		return nil, fmt.Errorf("%w%s", err, w.tail())
	}
	return values, nil
}

// settle is a pause between loads, for what the last one left behind.
func (s sampler) settle(ctx context.Context) { wait(ctx, min(s.opts.sample/4, 250*time.Millisecond)) }

// long is the length of a sample over a link, where a round trip takes its time.
func (s sampler) long() time.Duration { return max(2*s.opts.sample, 500*time.Millisecond) }

func sampleDownload(ctx context.Context, s sampler) error {
	cpu := s.cpuTimes()
	moved, seconds, err := download(ctx, s.dial, 1, s.opts.sample)
	if err != nil {
		return err
	}
	s.record(mDownload, mega(moved, seconds))
	s.recordCPU(mCPUDown, cpu, moved)
	s.settle(ctx)
	return nil
}

func sampleUpload(ctx context.Context, s sampler) error {
	cpu := s.cpuTimes()
	rate, err := upload(ctx, s.dial, s.opts.sample)
	if err != nil {
		return err
	}
	s.record(mUpload, rate/1e6)
	s.recordCPU(mCPUUp, cpu, rate*s.opts.sample.Seconds())
	s.settle(ctx)
	return nil
}

// cpuTimes returns the processor time of each process that counts, so far.
func (s sampler) cpuTimes() []float64 {
	times := make([]float64, len(s.world.procs))
	for i, p := range s.world.procs {
		times[i], _ = p.cpu() // a dead process fails the figure itself
	}
	return times
}

// recordCPU records seconds per GB of each process since before.
func (s sampler) recordCPU(metric string, before []float64, moved float64) {
	for i, now := range s.cpuTimes() {
		s.record(s.ofProcess(metric, i), (now-before[i])/(moved/1e9))
	}
}

// ofProcess names the metric of the i-th process; equal names get a number.
func (s sampler) ofProcess(metric string, i int) string {
	name := s.world.procs[i].name
	for j, p := range s.world.procs {
		if j != i && p.name == name {
			return fmt.Sprintf("%s (%s %d)", metric, name, i+1)
		}
	}
	return fmt.Sprintf("%s (%s)", metric, name)
}

func sampleEight(ctx context.Context, s sampler) error {
	moved, seconds, err := download(ctx, s.dial, 8, s.opts.sample)
	if err != nil {
		return err
	}
	s.record(mEight, mega(moved, seconds))
	s.settle(ctx)
	return nil
}

func sampleEcho(ctx context.Context, s sampler) error {
	times, err := echoes(ctx, s.dial, 1, 100, s.opts.sample)
	if err != nil {
		return err
	}
	s.record(mEchoP50, percentile(times, 0.50))
	s.record(mEchoP99, percentile(times, 0.99))
	return nil
}

// sampleBusy has no goal: only the processor is shared. It shows what fairness
// costs or saves.
func sampleBusy(ctx context.Context, s sampler) error {
	p50, p99, err := s.echoBeside(ctx, 1, s.opts.sample)
	if err != nil {
		return err
	}
	s.record(mBusyP50, p50)
	s.record(mBusyP99, p99)
	return nil
}

// echoBeside measures echoes over n connections beside four downloads.
func (s sampler) echoBeside(ctx context.Context, n int, length time.Duration) (p50, p99 float64, err error) {
	bulk, err := startDownloads(ctx, s.dial, 4)
	if err != nil {
		return 0, 0, err
	}
	wait(ctx, s.opts.sample/2) // queues and windows fill
	times, err := echoes(ctx, s.dial, n, 2, length)
	if stopped := bulk.stop(); err == nil {
		err = stopped
	}
	s.settle(ctx)
	return percentile(times, 0.50), percentile(times, 0.99), err
}

func sampleOpens(ctx context.Context, s sampler) error {
	cpu := s.cpuTimes()
	many, err := opens(ctx, s.dial, 16, s.opts.sample)
	if err != nil {
		return err
	}
	used := s.cpuTimes()
	one, err := opens(ctx, s.dial, 1, s.opts.sample/2)
	if err != nil {
		return err
	}
	s.record(mOpens16, many)
	s.record(mOpens1, one)
	all := many * (s.opts.sample + openWarm).Seconds()
	for i := range used {
		s.record(s.ofProcess(mCPUOpen, i), (used[i]-cpu[i])/all*1e6)
	}
	s.settle(ctx)
	return nil
}

// sampleStalled compares with a download of its own, a moment before.
func sampleStalled(ctx context.Context, s sampler) error {
	moved, seconds, err := download(ctx, s.dial, 1, s.opts.sample)
	if err != nil {
		return err
	}
	alone := mega(moved, seconds)
	var stalled []*net.TCPConn
	defer func() { closeAll(stalled) }()
	for range 8 {
		c, err := ask(ctx, s.dial, askDownload)
		if err != nil {
			return err
		}
		stalled = append(stalled, c)
	}
	wait(ctx, max(s.opts.sample/4, 300*time.Millisecond)) // until their buffers are full
	moved, seconds, err = download(ctx, s.dial, 1, s.opts.sample)
	if err != nil {
		return err
	}
	s.record(mStalled, mega(moved, seconds))
	s.record(mStalledRatio, mega(moved, seconds)/alone)
	return nil
}

func sampleFar(ctx context.Context, s sampler) error {
	length := s.long()
	moved, seconds, err := download(ctx, s.dial, 1, length)
	if err != nil {
		return err
	}
	rate, err := upload(ctx, s.dial, length)
	if err != nil {
		return err
	}
	s.record(mFarDown, mega(moved, seconds))
	s.record(mFarUp, rate/1e6)
	return nil
}

// sampleShared echoes over several connections only to have enough samples for
// a percentile: each waits for most of a round trip and sends little.
func sampleShared(ctx context.Context, s sampler) error {
	p50, p99, err := s.echoBeside(ctx, 4, s.long())
	if err != nil {
		return err
	}
	s.record(mSharedP50, p50)
	s.record(mSharedP99, p99)
	return nil
}

// sampleIdle opens idle streams in processes that have served a few before.
func sampleIdle(ctx context.Context, s sampler) error {
	warm, err := holdIdle(ctx, s.dial, 32)
	closeAll(warm)
	if err != nil {
		return err
	}
	wait(ctx, 500*time.Millisecond)
	before := make([]float64, len(s.world.procs))
	for i, p := range s.world.procs {
		if before[i], err = p.resident(); err != nil {
			return err
		}
	}
	idle, err := holdIdle(ctx, s.dial, s.opts.idle)
	defer closeAll(idle)
	if err != nil {
		return err
	}
	wait(ctx, min(s.opts.sample, 2*time.Second))
	for i, p := range s.world.procs {
		after, err := p.resident()
		if err != nil {
			return err
		}
		s.record(s.ofProcess(mIdle, i), (after-before[i])/float64(s.opts.idle))
	}
	return nil
}

// progress tells the person who waits what is going on.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
