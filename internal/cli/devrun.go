package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"postern.dev/postern/internal/agent"
	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/demo"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/uplink"
)

// devPatience bounds the start of the whole demo.
const devPatience = time.Minute

// dev is one run of the demo.
type dev struct {
	world    command.World
	settings config.Dev
	dir      string
	log      *slog.Logger
}

// run starts everything, invites, and waits until ctx ends. The hub ends last, so
// that the others can say goodbye.
func (d *dev) run(ctx context.Context) error {
	network, err := demo.Listen(ctx, []string{devHost}, d.log.With("part", "demo"))
	if err != nil {
		return err
	}
	defer network.Close()
	hubCtx, stopHub := context.WithCancel(context.WithoutCancel(ctx))
	defer stopHub()
	started := make(chan hub.Info, 1)
	hubDone := make(chan error, 1)
	go func() { hubDone <- d.runHub(hubCtx, started) }()

	var info hub.Info
	select {
	case info = <-started:
		err = d.runParties(ctx, network, info, hubDone)
	case err = <-hubDone:
		return err
	case <-ctx.Done():
	}
	stopHub()
	return errors.Join(err, <-hubDone)
}

func (d *dev) runHub(ctx context.Context, started chan<- hub.Info) error {
	s := config.DefaultHub()
	s.Data, s.Listen, s.DrainTimeout = filepath.Join(d.dir, "hub"), "127.0.0.1:0", time.Second
	return hub.New(s, hub.Options{
		Version: command.Version(), Registry: observe.NewRegistry("hub", command.Version()), Health: observe.NewHealth(),
		Log: d.log.With("part", "hub"), Started: func(i hub.Info) { started <- i },
	}).Run(ctx)
}

// runParties enrols an agent and a proxy as their owners would, and runs them
// with the demo's services until ctx ends or one of them fails.
func (d *dev) runParties(ctx context.Context, network *demo.Network, info hub.Info, hubDone chan error) error {
	token := filepath.Join(d.dir, "token.json")
	if err := d.enrol(ctx, info, token); err != nil {
		return err
	}
	party := config.Party{
		Uplink:       config.Uplink{ConnectURL: hubURL(info.Listen), CAFile: info.CAFile},
		Organization: config.DefaultOrganization, AgentID: devAgent, TokenFile: token, Name: "dev", DrainTimeout: time.Second,
	}
	agentSettings := config.DefaultAgent()
	agentSettings.Party = party
	for _, addr := range []net.Addr{network.Web, network.Kubernetes, network.Database} {
		agentSettings.Allow = append(agentSettings.Allow, "tcp:localhost:"+portOf(addr))
	}
	proxySettings := config.DefaultProxy()
	proxySettings.Party = party
	proxySettings.HTTP = d.settings.HTTP
	// The proxy of the machine, if it has one, is not on the way to loopback.
	getenv := func(string) string { return "" }
	a, err := agent.New(agentSettings, agent.Options{
		Version: command.Version(), Getenv: getenv, Health: observe.NewHealth(), Log: d.log.With("part", "agent"),
	})
	if err != nil {
		return err
	}
	listening := make(chan []net.Addr, 1)
	p := proxy.New(proxySettings, proxy.Options{
		Version: command.Version(), Getenv: getenv, Log: d.log.With("part", "proxy"),
		Listening: func(addrs []net.Addr) { listening <- addrs },
	})

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return network.Run(ctx) })
	g.Go(func() error { return a.Run(ctx) })
	g.Go(func() error { return p.Run(ctx) })
	g.Go(func() error {
		select {
		case addrs := <-listening:
			return d.invite(ctx, network, info, addrs[0])
		case <-ctx.Done():
			return nil
		}
	})
	g.Go(func() error {
		select {
		case err := <-hubDone:
			hubDone <- nil // told already
			return errors.Join(errors.New("the hub ended"), err)
		case <-ctx.Done():
			return nil
		}
	})
	return g.Wait()
}

// enrol makes a robot and its token with the commands of an administrator.
func (d *dev) enrol(ctx context.Context, info hub.Info, file string) error {
	u, err := uplink.New(uplink.Config{ConnectURL: hubURL(info.Listen), CAFile: info.CAFile, Getenv: func(string) string { return "" }})
	if err != nil {
		return err
	}
	defer u.CloseIdle()
	ctx, cancel := context.WithTimeout(ctx, devPatience)
	defer cancel()
	admin, _, err := (&enroll.RobotToken{File: info.AdminTokenFile}).SubjectToken(ctx)
	if err != nil {
		return err
	}
	c := &api.Client{BaseURL: u.BaseURL(), HTTP: u.HTTPClient(), Token: admin}
	if _, err := c.CreateRobot(ctx, config.DefaultOrganization, api.CreateRobot{Name: devRobot}); err != nil {
		return err
	}
	quiet := d.world
	quiet.Stderr = io.Discard
	return createToken(ctx, quiet, c, config.DefaultOrganization, devRobot, "dev", tokenOptions{file: file})
}

// invite waits until a request gets through, and prints what to try.
func (d *dev) invite(ctx context.Context, network *demo.Network, info hub.Info, proxyAddr net.Addr) error {
	web := "http://" + net.JoinHostPort(devHost, portOf(network.Web)) + "/"
	if err := reachable(ctx, proxyAddr, web); err != nil {
		return err
	}
	server := "https://" + net.JoinHostPort(devHost, portOf(network.Kubernetes))
	ca, errCA := d.write("kubernetes-ca.crt", string(network.CA))
	kube, errKube := d.write("kubeconfig", demoKubeconfig(server, "http://"+proxyAddr.String(), ca))
	client, errClient := d.write("client.yaml", fmt.Sprintf("hub: %s\ntokenFile: %s\ncaFile: %s\n",
		yamlText(hubURL(info.Listen)), yamlText(absolute(info.AdminTokenFile)), yamlText(absolute(info.CAFile))))
	env, errEnv := d.write("env", adminEnvironment(hubURL(info.Listen), info)+"\n")
	if err := errors.Join(errCA, errKube, errClient, errEnv); err != nil {
		return err
	}
	_, err := fmt.Fprint(d.world.Stdout, invitation{
		program: thisProgram(exec.LookPath), dir: d.dir, proxy: proxyAddr.String(), webPort: portOf(network.Web),
		database: "tcp:localhost:" + portOf(network.Database), kubeconfig: kube, client: client, env: env,
	})
	return wrote(err)
}

// reachable asks for a page through a proxy until it comes.
func reachable(ctx context.Context, proxyAddr net.Addr, page string) error {
	ctx, cancel := context.WithTimeout(ctx, devPatience)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: proxyAddr.String()}),
	}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
		if err != nil {
			return fmt.Errorf("ask for the demo's page: %w", err)
		}
		res, err := client.Do(req)
		if err == nil {
			body, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10))
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("%s: %s", res.Status, body)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the demo's page cannot be reached: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func portOf(a net.Addr) string {
	_, port, _ := net.SplitHostPort(a.String())
	return port
}
