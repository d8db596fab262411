package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// contender is one column of the report: a way to the target.
type contender struct {
	name  string
	title string
	world string // which builder makes its processes
	enter string // which entrance of that world it uses
	ours  bool
}

// forward is the entrance that all contenders but two use: a plain TCP port.
const forward = "forward"

// contenders in the order in which each round measures them.
var contenders = []contender{
	{name: "direct", title: "direct", world: "direct", enter: forward},
	{name: "plain", title: "plain ×2", world: "plain", enter: forward},
	{name: "tls", title: "one TLS hop", world: "tls", enter: forward},
	{name: "yamux", title: "yamux", world: "yamux", enter: forward},
	{name: "hub", title: "hub's proxy", world: "hub", enter: forward, ours: true},
	{name: "separate", title: "separate", world: "separate", enter: forward, ours: true},
	{name: "connect", title: "sep. CONNECT", world: "separate", enter: "connect", ours: true},
	{name: "socks5", title: "sep. SOCKS5", world: "separate", enter: "socks5", ours: true},
	{name: "api", title: "direct API", world: "api"},
	{name: "gateway", title: "gateway", world: "gateway", ours: true},
}

func contenderNames() []string {
	names := make([]string, 0, len(contenders))
	for _, c := range contenders {
		names = append(names, c.name)
	}
	return names
}

// builders start the processes of each kind of world.
var builders = map[string]func(ctx context.Context, b *bench, w *world, p path) error{
	"direct":   startDirect,
	"plain":    startPlain,
	"tls":      startTLS,
	"yamux":    startYamux,
	"hub":      startHub,
	"separate": startSeparate,
	"api":      startAPI,
	"gateway":  startGateway,
}

// startDirect is the raw path when there is a link.
func startDirect(_ context.Context, b *bench, w *world, p path) error {
	addr, err := b.link(w, p, b.addr)
	w.entrances[forward] = dialPlain(addr)
	return err
}

// chain starts two roles, the second before the target and the first before the
// link to the second.
func (b *bench) chain(w *world, p path, first, second string) error {
	far, err := b.add(w, second, second, "-to", b.addr, "-cert", b.cert)
	if err != nil {
		return err
	}
	via, err := b.link(w, p, far[0])
	if err != nil {
		return err
	}
	near, err := b.add(w, first, first, "-to", via, "-cert", b.cert)
	if err != nil {
		return err
	}
	w.entrances[forward] = dialPlain(near[0])
	return nil
}

func startPlain(_ context.Context, b *bench, w *world, p path) error {
	return b.chain(w, p, "relay", "relay")
}

func startTLS(_ context.Context, b *bench, w *world, p path) error {
	return b.chain(w, p, "tls-in", "tls-out")
}

func startYamux(_ context.Context, b *bench, w *world, p path) error {
	hub, err := b.add(w, "hub", "yamux-hub", "-cert", b.cert)
	if err != nil {
		return err
	}
	via, err := b.link(w, p, hub[0])
	if err != nil {
		return err
	}
	if _, err := b.add(w, "agent", "yamux-agent", "-hub", via, "-to", b.addr, "-cert", b.cert); err != nil {
		return err
	}
	w.entrances[forward] = dialPlain(hub[1])
	return nil
}

// The names that the bench gives to its parties.
const (
	agentName = "bench"
	orgName   = "default"
)

// startHub is the hub with its own port forward, and an agent.
func startHub(ctx context.Context, b *bench, w *world, p path) error {
	entry, err := b.freeAddr()
	if err != nil {
		return err
	}
	h, err := b.startHubProcess(ctx, w, "--forward", b.forwardTo(entry))
	if err != nil {
		return err
	}
	w.entrances[forward] = dialPlain(entry)
	return h.startAgent(b, w, p)
}

// startSeparate is a hub that only relays, a proxy and an agent.
func startSeparate(ctx context.Context, b *bench, w *world, p path) error {
	var addrs [3]string
	for i := range addrs {
		var err error
		if addrs[i], err = b.freeAddr(); err != nil {
			return err
		}
	}
	h, err := b.startHubProcess(ctx, w)
	if err != nil {
		return err
	}
	err = b.startPostern(w, "proxy", "--connect-url", "tls://"+h.addr, "--organization", orgName,
		"--agent-id", agentName, "--token-file", h.token, "--ca-file", h.ca,
		"--forward", b.forwardTo(addrs[0]), "--http", addrs[1], "--socks5", addrs[2])
	if err != nil {
		return err
	}
	w.entrances[forward] = dialPlain(addrs[0])
	w.entrances["connect"] = dialConnect(addrs[1], b.addr)
	w.entrances["socks5"] = dialSOCKS(addrs[2], b.addr)
	return h.startAgent(b, w, p)
}

func (b *bench) forwardTo(listen string) string {
	return listen + "=" + agentName + "/tcp:" + b.addr
}

// hubProcess is what the other parties need to know of a running hub.
type hubProcess struct{ addr, ca, token string }

// startHubProcess starts a hub with fresh data and makes a robot token.
func (b *bench) startHubProcess(ctx context.Context, w *world, args ...string) (*hubProcess, error) {
	addr, err := b.freeAddr()
	if err != nil {
		return nil, err
	}
	data, err := os.MkdirTemp(b.dir, "hub-")
	if err != nil {
		return nil, err
	}
	h := &hubProcess{addr: addr, ca: filepath.Join(data, "ca.crt"), token: filepath.Join(b.dir, filepath.Base(data)+".json")}
	err = b.startPostern(w, "hub", append([]string{"--data", data, "--listen", addr}, args...)...)
	if err != nil {
		return nil, err
	}
	hub := w.procs[len(w.procs)-1]
	env := []string{
		"POSTERN_HUB=https://" + addr,
		"POSTERN_TOKEN_FILE=" + filepath.Join(data, "admin.token"),
		"POSTERN_CA_FILE=" + h.ca,
	}
	if err := waitForHub(ctx, hub, addr, data); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"robot", "create", "bench", "-a", orgName},
		{"robot", "token", "create", "bench", "bench", "-f", h.token, "-a", orgName},
	} {
		cmd := exec.CommandContext(ctx, b.binary, args...)
		cmd.Env = append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("postern %s %s: %w\n%s", args[0], args[1], err, out)
		}
	}
	return h, checkToken(h.token)
}

// waitForHub waits until the hub has written its files and accepts.
func waitForHub(ctx context.Context, hub *process, addr, data string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		_, errCA := os.Stat(filepath.Join(data, "ca.crt"))
		_, errToken := os.Stat(filepath.Join(data, "admin.token"))
		c, errDial := dialTCP(ctx, addr)
		if errDial == nil {
			_ = c.Close()
		}
		err := errors.Join(errCA, errToken, errDial)
		if err == nil {
			return nil
		}
		select {
		case <-hub.done:
			return errors.New("the hub ended")
		case <-ctx.Done():
			return fmt.Errorf("the hub did not get ready: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func checkToken(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var token struct{ AccessID, Token string }
	if err := json.Unmarshal(text, &token); err != nil || token.Token == "" {
		return errors.New("the robot token's file is not the expected JSON")
	}
	return nil
}

func (h *hubProcess) startAgent(b *bench, w *world, p path) error {
	via, err := b.link(w, p, h.addr)
	if err != nil {
		return err
	}
	return b.startPostern(w, "agent", "--connect-url", "tls://"+via, "--organization", orgName,
		"--agent-id", agentName, "--token-file", h.token, "--ca-file", h.ca, "--allow", "tcp:"+b.addr)
}

// startPostern starts the postern executable in the role that is its first
// argument.
func (b *bench) startPostern(w *world, role string, args ...string) error {
	p, err := b.start("postern-"+role, nil, nil, b.binary, append([]string{role}, args...)...)
	if err != nil {
		return err
	}
	p.name = role
	w.procs = append(w.procs, p)
	return nil
}

// freeAddr returns a loopback address that nothing listens on. Its port is below
// those that the kernel gives to outgoing connections and to listeners that do
// not care, so that nobody else gets it meanwhile.
func (b *bench) freeAddr() (string, error) {
	const first, last = 20000, 32000
	if b.nextPort == 0 {
		b.nextPort = first + os.Getpid()%(last-first)
	}
	for range last - first {
		if b.nextPort++; b.nextPort > last {
			b.nextPort = first
		}
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", b.nextPort))
		if err == nil {
			return ln.Addr().String(), ln.Close()
		}
	}
	return "", errors.New("no free port")
}
