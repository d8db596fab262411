package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"postern.dev/postern/internal/config"
)

// Fronts are the listeners of a proxy.
type Fronts struct {
	log         *slog.Logger
	servers     []frontServer
	access      *Access
	credentials *credentials // nil without a file of them
}

type frontServer interface {
	Run(ctx context.Context, drain time.Duration) error
	Addr() net.Addr
	Shutdown(ctx context.Context) error
}

// Listen opens the listeners of the settings. It opens all or none. verify checks
// robot tokens that clients show as password; nil where that is not possible.
func Listen(ctx context.Context, cfg config.Listeners, verify VerifyFunc, front FrontConfig) (*Fronts, error) {
	f := &Fronts{log: front.Log}
	access := AccessConfig{Verify: verify, Require: cfg.RequireToken}
	if cfg.CredentialsFile != "" {
		f.credentials = newCredentials(cfg.CredentialsFile, front.Log)
		users, err := f.credentials.first()
		if err != nil {
			return nil, err
		}
		access.Users = users
	}
	gate, err := NewAccess(access)
	if err != nil {
		return nil, err
	}
	f.access = gate
	open := func(addr string, serve func(net.Listener) (frontServer, error)) {
		if err != nil {
			return
		}
		lc := net.ListenConfig{KeepAlive: -1}
		if !config.Loopback(addr) { // else no client can vanish without a word
			lc.KeepAlive = 0
		}
		ln, lerr := lc.Listen(ctx, "tcp", addr)
		if lerr != nil {
			err = fmt.Errorf("listen for clients: %w", lerr)
			return
		}
		s, serr := serve(ln)
		if serr != nil {
			_ = ln.Close()
			err = serr
			return
		}
		f.servers = append(f.servers, s)
	}
	if cfg.HTTP != "" {
		open(cfg.HTTP, func(ln net.Listener) (frontServer, error) { return NewHTTP(ln, gate, front) })
	}
	if cfg.SOCKS5 != "" {
		open(cfg.SOCKS5, func(ln net.Listener) (frontServer, error) { return NewSOCKS5(ln, gate, front) })
	}
	for _, text := range cfg.Forwards {
		fw, perr := config.ParseForward(text)
		if perr != nil {
			err = errors.Join(err, perr)
			break
		}
		open(fw.Listen, func(ln net.Listener) (frontServer, error) {
			to := ForwardTarget{Agent: AgentRef{Organization: fw.Organization, Agent: fw.Agent}, Target: fw.Target}
			return NewPortForward(ln, to, front)
		})
	}
	if err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// close gives up listeners that were never run.
func (f *Fronts) close() {
	past, cancel := context.WithCancel(context.Background())
	cancel()
	for _, s := range f.servers {
		_ = s.Shutdown(past)
	}
}

// Addrs returns the addresses that clients may connect to, in the order HTTP,
// SOCKS5, forwards.
func (f *Fronts) Addrs() []net.Addr {
	var addrs []net.Addr
	for _, s := range f.servers {
		addrs = append(addrs, s.Addr())
	}
	return addrs
}

// Run serves until ctx ends, and then lets streams finish for the drain time.
func (f *Fronts) Run(ctx context.Context, drain time.Duration) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range f.servers {
		f.log.Info("clients may connect", "address", s.Addr().String(), "kind", kind(s))
		g.Go(func() error {
			err := s.Run(ctx, drain)
			if ctx.Err() != nil { // a drain that ran out of time has been logged
				return nil
			}
			return err
		})
	}
	g.Go(func() error {
		if f.credentials != nil {
			f.credentials.run(ctx, f.access)
		}
		<-ctx.Done()
		return nil
	})
	return g.Wait()
}

func kind(s frontServer) string {
	switch s.(type) {
	case *HTTP:
		return string(FrontHTTP)
	case *SOCKS5:
		return string(FrontSOCKS5)
	default:
		return string(FrontForward)
	}
}
