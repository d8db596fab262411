// Package world runs a hub with one agent in the process of a test, for the tests of
// what uses them from outside.
package world

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"postern.dev/postern/internal/agent"
	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/uplink"
)

// Patience bounds what a test waits for; reaching it is a failure.
const Patience = 30 * time.Second

// Agent is the ID of the agent, and Robot the robot that its token is of.
const (
	Agent = "office"
	Robot = "machines"
)

// World is a hub with one agent, in the organization "default". The agent allows all of
// 127.0.0.1.
type World struct {
	ConnectURL string
	CAFile     string
	Token      string      // of Robot
	Admin      *api.Client // as the hub's administrator

	stop []func()
}

// New starts a World with what change, which may be nil, makes of the hub's settings. The
// caller closes it.
func New(change func(*config.Hub)) (w *World, err error) {
	w = &World{}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	dir, err := os.MkdirTemp("", "world-*")
	if err != nil {
		return nil, fmt.Errorf("start world: %w", err)
	}
	w.stop = append(w.stop, func() { _ = os.RemoveAll(dir) })
	log := slog.New(slog.DiscardHandler)
	settings := config.DefaultHub()
	settings.Data, settings.Listen, settings.DrainTimeout = filepath.Join(dir, "hub"), "127.0.0.1:0", time.Second
	if change != nil {
		change(&settings)
	}
	started := make(chan hub.Info, 1)
	h := hub.New(settings, hub.Options{
		Version: "test", Registry: observe.NewRegistry("hub", "test"), Health: observe.NewHealth(), Log: log,
		Started: func(i hub.Info) { started <- i },
	})
	ended := w.run(h.Run)
	var info hub.Info
	select {
	case info = <-started:
	case err := <-ended:
		return nil, fmt.Errorf("the hub ended: %w", err)
	case <-time.After(Patience):
		return nil, errors.New("the hub does not start")
	}
	w.ConnectURL, w.CAFile = "tls://"+info.Listen.String(), info.CAFile
	if err := w.robot(info); err != nil {
		return nil, err
	}
	a := config.DefaultAgent()
	a.Party = config.Party{
		Uplink: config.Uplink{ConnectURL: w.ConnectURL, CAFile: w.CAFile}, Organization: config.DefaultOrganization,
		AgentID: Agent, Token: config.Secret(w.Token), Name: "one", DrainTimeout: time.Second,
	}
	a.Allow = []string{"tcp:127.0.0.1:*", "tcp:nowhere.invalid:*"}
	role, err := agent.New(a, agent.Options{Version: "test", Getenv: noEnv, Health: observe.NewHealth(), Log: log})
	if err != nil {
		return nil, err
	}
	w.run(role.Run)
	return w, nil
}

func noEnv(string) string { return "" }

// run runs a role until the world is closed.
func (w *World) run(role func(context.Context) error) (ended <-chan error) {
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { result <- role(ctx) })
	w.stop = append(w.stop, func() { cancel(); wg.Wait() })
	return result
}

// Close stops agent and hub, and waits for them.
func (w *World) Close() {
	for len(w.stop) > 0 {
		last := len(w.stop) - 1
		w.stop[last]()
		w.stop = w.stop[:last]
	}
}

// robot makes the robot with a token, as an administrator does.
func (w *World) robot(info hub.Info) error {
	d, err := uplink.New(uplink.Config{ConnectURL: w.ConnectURL, CAFile: w.CAFile, Getenv: noEnv})
	if err != nil {
		return err
	}
	w.stop = append(w.stop, d.CloseIdle)
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	secret, _, err := (&enroll.RobotToken{File: info.AdminTokenFile}).SubjectToken(ctx)
	if err != nil {
		return err
	}
	w.Admin = &api.Client{BaseURL: d.BaseURL(), HTTP: d.HTTPClient(), Token: secret}
	if _, err := w.Admin.CreateRobot(ctx, config.DefaultOrganization, api.CreateRobot{Name: Robot}); err != nil {
		return err
	}
	token, err := w.Admin.CreateRobotToken(ctx, config.DefaultOrganization, Robot, api.CreateToken{Name: "first"})
	w.Token = token.Token
	return err
}
