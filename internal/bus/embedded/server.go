// Package embedded is the bus's server, in the hub's process: NATS in operator
// mode with an account per organization, a store on disk that is encrypted at
// rest, and no port of its own. Connections come in through the hub's one port
// and are handed over with Serve.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/jwt/v2"
	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/identity"
)

// Limits of the server, unless the Config says otherwise.
const (
	defaultConnections = 100_000 // per organization
	defaultStore       = 1 << 50 // bytes on disk: each stream has a limit of its own, which reserves its part of this
	memoryStore        = 64 << 20
	userSubscriptions  = 32 // an agent has three, a proxy two
	authTimeout        = 10 // seconds for the first words of a connection
	pendingLimit       = 8 << 20
	startTimeout       = time.Minute
)

// Config says how the server runs.
type Config struct {
	// Dir is where the store is, made if need be; no other process may use it.
	Dir string

	// EncryptionKey encrypts the store: at least 32 random bytes.
	EncryptionKey []byte

	TrustDomain string // names the operator, for people
	Node        string // names the server in a cluster

	MaxConnections int   // per organization; 0: 100,000
	MaxStore       int64 // bytes on disk, of all streams together; 0: no limit to speak of

	Log *slog.Logger // nil: silent
}

// Server is a running bus. It is safe for concurrent use.
type Server struct {
	conf     Config
	log      *slog.Logger
	ns       *natsserver.Server
	operator keyPair
	hub      account
	resolver *natsserver.MemAccResolver
	hubConn  *nats.Conn // into the hub's account, for the store

	mu       sync.Mutex
	accounts map[string]*account // by organization
}

// Start starts the server with the seeds that NewSeeds made. With a directory
// of another key it returns ErrWrongKey, with one that is not its own
// ErrForeign, and changes nothing there. End it with Shutdown.
func Start(conf Config, seeds []byte) (*Server, error) {
	if conf.Log == nil {
		conf.Log = slog.New(slog.DiscardHandler)
	}
	if conf.MaxConnections == 0 {
		conf.MaxConnections = defaultConnections
	}
	if conf.MaxStore == 0 {
		conf.MaxStore = defaultStore
	}
	if err := identity.ValidateName("node", conf.Node); err != nil {
		return nil, err
	}
	operator, system, hub, err := parseSeeds(seeds)
	if err != nil {
		return nil, err
	}
	if err := checkKey(conf.Dir, conf.EncryptionKey); err != nil {
		return nil, err
	}
	s := &Server{
		conf: conf, log: conf.Log, operator: operator, hub: account{key: hub, name: "hub", store: true},
		resolver: &natsserver.MemAccResolver{}, accounts: make(map[string]*account),
	}
	if err := errors.Join(s.store(&account{key: system, name: "system"}), s.store(&s.hub)); err != nil {
		return nil, err
	}
	if s.ns, err = s.startServer(system.public); err != nil {
		return nil, err
	}
	if s.hubConn, err = s.connectHub(); err != nil {
		s.Shutdown()
		return nil, fmt.Errorf("connect to the bus's store: %w", err)
	}
	return s, nil
}

func (s *Server) startServer(system string) (*natsserver.Server, error) {
	claims := jwt.NewOperatorClaims(s.operator.public)
	claims.Name = s.conf.TrustDomain
	claims.SystemAccount = system
	log := &logger{log: s.log}
	ns, err := natsserver.NewServer(&natsserver.Options{
		ServerName:          s.conf.Node,
		DontListen:          true,
		NoSigs:              true,
		NoLog:               true, // until the logger is set
		TrustedOperators:    []*jwt.OperatorClaims{claims},
		SystemAccount:       system,
		AccountResolver:     s.resolver,
		JetStream:           true,
		StoreDir:            filepath.Clean(s.conf.Dir),
		JetStreamKey:        string(s.conf.EncryptionKey),
		JetStreamCipher:     natsserver.AES,
		JetStreamMaxMemory:  memoryStore,
		JetStreamMaxStore:   s.conf.MaxStore,
		SyncAlways:          true, // a token that was shown to a person must survive a power cut; writes are few
		AuthTimeout:         authTimeout,
		PingInterval:        10 * time.Second,
		MaxPingsOut:         2,
		WriteDeadline:       10 * time.Second,
		MaxPending:          pendingLimit,
		MaxConn:             math.MaxInt32, // each account has a limit of its own
		NoFastProducerStall: true,
	})
	if err != nil {
		return nil, fmt.Errorf("make the bus server: %w", err)
	}
	ns.SetLoggerV2(log, false, false, false)
	ns.Start() // returns at once when there is nothing to listen on
	ready := ns.ReadyForConnections(startTimeout)
	if fatal := log.fatalError(); fatal != nil || !ready {
		ns.Shutdown()
		ns.WaitForShutdown()
		return nil, fmt.Errorf("start the bus server: %w", errors.Join(fatal, notReady(ready)))
	}
	return ns, nil
}

func notReady(ready bool) error {
	if ready {
		return nil
	}
	return fmt.Errorf("not ready after %s", startTimeout)
}

// InProcess returns a new connection into the server that speaks the NATS
// protocol; the caller closes it. It has no buffers: who does not read while it
// writes may stand still, so parties from outside come in through Serve.
func (s *Server) InProcess() (net.Conn, error) {
	conn, err := s.ns.InProcessConn()
	if err != nil {
		return nil, fmt.Errorf("connect to the bus server: %w", err)
	}
	return conn, nil
}

// Connections returns how many connections the server has, the hub's own included.
func (s *Server) Connections() int { return s.ns.NumClients() }

// Connect returns the hub's own connection into an organization; it may do
// everything there. The caller closes it.
func (s *Server) Connect(ctx context.Context, org string) (*bus.Conn, error) {
	public, seed, err := bus.NewUserKey()
	if err != nil {
		return nil, err
	}
	token, err := s.MintUser(org, public, identity.RoleHub, "", "", 0)
	if err != nil {
		return nil, err
	}
	return bus.Connect(ctx, bus.Options{
		Dial:  func(context.Context) (net.Conn, error) { return s.InProcess() },
		Token: func() string { return token },
		Seed:  func() []byte { return seed },
		Name:  "hub " + s.conf.Node,
		Log:   s.log,
	})
}

// Shutdown ends all connections and the server, and waits until the store is
// closed. Close the Conns of Connect before, or they try to come back.
func (s *Server) Shutdown() {
	if s.hubConn != nil {
		s.hubConn.Close()
	}
	s.ns.Shutdown()
	s.ns.WaitForShutdown()
}
