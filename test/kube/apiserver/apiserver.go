//go:build linux

// Package apiserver runs an API server of Kubernetes with its etcd, on loopback, and nothing
// beside them: no node, no controller. It needs no root and starts in seconds, for tests that
// store, list and watch objects but run nothing, and for those that take long, since any number
// of them run at a time.
package apiserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"postern.dev/postern/test/kube/bins"
	"postern.dev/postern/test/kube/pki"
	"postern.dev/postern/test/kube/proc"
)

// startTimeout bounds the start, once the programs are built.
const startTimeout = 2 * time.Minute

// issuer is what the tokens of service accounts say they are from.
const issuer = "https://kubernetes.default.svc.cluster.local"

// watchTime is for how long the server lets a watch go on, at least, if the client does not say.
// By itself it ends them after half an hour to an hour; then nothing would tell such an end from
// one on the way.
const watchTime = 3 * time.Hour

// Server is a running API server. Its methods are not safe for concurrent use, but Kubectl is.
type Server struct {
	dir        string
	bins       *bins.Set
	pki        *pki.Authority
	client     *http.Client
	args       []string // of the API server
	kubeconfig string
	etcd, api  *proc.Process
	addr       string
	etcdURL    string
}

// StartT builds what is missing and starts a server that ends with the test, with further
// arguments of kube-apiserver.
func StartT(t *testing.T, args ...string) *Server {
	t.Helper()
	set, err := bins.Ensure(t.Context(), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	s := &Server{dir: t.TempDir(), bins: set, args: args}
	t.Cleanup(s.close)
	if err := s.start(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// Addr is where the server listens, HOST:PORT.
func (s *Server) Addr() string { return s.addr }

// CAFile is the path of the certificate that verifies the server.
func (s *Server) CAFile() string { return s.pki.CertFile() }

// KubectlPath is the path of kubectl.
func (s *Server) KubectlPath() string { return s.bins.Path("kubectl") }

// Kubectl runs kubectl as administrator, straight at the server.
func (s *Server) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.KubectlPath(), append([]string{"--kubeconfig", s.kubeconfig, "--cache-dir", filepath.Join(s.dir, "cache")}, args...)...)
	cmd.Stdin = bytes.NewReader([]byte(stdin))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %v: %w\n%s", args, err, out)
	}
	return string(out), nil
}

// Admin is the kubeconfig of the administrator, straight at the server.
func (s *Server) Admin() string { return s.kubeconfig }

// Forget ends the server, as a crash would, has etcd forget every revision but the last, and
// starts the server again: what watched must list anew, since nobody knows what came between.
func (s *Server) Forget(ctx context.Context) error {
	s.api.Kill()
	var at struct {
		Header struct {
			Revision string `json:"revision"`
		} `json:"header"`
	}
	if err := s.ask(ctx, "range", map[string]any{"key": []byte("/"), "count_only": true}, &at); err != nil {
		return err
	}
	if err := s.ask(ctx, "compaction", map[string]any{"revision": at.Header.Revision, "physical": true}, nil); err != nil {
		return err
	}
	return s.startAPI(ctx)
}

// ask has etcd do something, by its API in JSON.
func (s *Server) ask(ctx context.Context, what string, body, answer any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("ask etcd: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.etcdURL+"/v3/kv/"+what, bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("ask etcd: %w", err)
	}
	response, err := s.client.Do(request)
	if err != nil {
		return fmt.Errorf("ask etcd: %w", err)
	}
	defer response.Body.Close()
	text, err = io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("ask etcd for a %s: %w", what, err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("ask etcd for a %s: %s: %s", what, response.Status, text)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

func (s *Server) start(ctx context.Context) error {
	var err error
	if s.pki, err = pki.New(filepath.Join(s.dir, "pki"), "postern-apiserver"); err != nil {
		return err
	}
	etcd, peers := "http://"+freeAddr(), "http://"+freeAddr()
	s.addr, s.etcdURL = freeAddr(), etcd
	s.etcd, err = s.daemon("etcd", "--data-dir", filepath.Join(s.dir, "etcd"), "--name", "one",
		"--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
		"--initial-cluster", "one="+peers, "--unsafe-no-fsync", "--log-level", "warn")
	if err != nil {
		return err
	}
	if err := s.credentials(); err != nil {
		return err
	}
	return s.startAPI(ctx)
}

// credentials makes the keys, the administrator and the settings of the API server.
func (s *Server) credentials() error {
	serving, err := s.pki.Issue("serving", pki.Subject{Name: "kube-apiserver", Hosts: []string{"127.0.0.1", "kubernetes.default.svc.cluster.local"}})
	if err != nil {
		return err
	}
	accounts, err := s.pki.SigningKey("accounts")
	if err != nil {
		return err
	}
	admin, err := s.pki.Issue("admin", pki.Subject{Name: "admin", Groups: []string{"system:masters"}})
	if err != nil {
		return err
	}
	cert, err := admin.TLS()
	if err != nil {
		return err
	}
	s.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{RootCAs: s.pki.Pool(), Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
	}}
	host, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		return err
	}
	s.args = append([]string{
		"--etcd-servers", s.etcdURL, "--bind-address", host, "--advertise-address", host, "--secure-port", port, "--endpoint-reconciler-type", "none",
		"--tls-cert-file", serving.CertFile, "--tls-private-key-file", serving.KeyFile, "--client-ca-file", s.pki.CertFile(),
		"--service-account-issuer", issuer, "--service-account-key-file", accounts.CertFile, "--service-account-signing-key-file", accounts.KeyFile,
		"--service-cluster-ip-range", "10.96.0.0/24", "--authorization-mode", "RBAC", "--profiling=false",
		"--min-request-timeout", strconv.Itoa(int(watchTime.Seconds())),
		// Pods of nobody's account, since there is no controller that makes one.
		"--disable-admission-plugins", "ServiceAccount",
	}, s.args...)
	s.kubeconfig = filepath.Join(s.dir, "pki", "admin.kubeconfig")
	return pki.Kubeconfig{Server: "https://" + s.addr, CA: s.pki.CertPEM(), Client: admin}.WriteFile(s.kubeconfig)
}

func (s *Server) startAPI(ctx context.Context) (err error) {
	if s.api, err = s.daemon("kube-apiserver", s.args...); err != nil {
		return err
	}
	return proc.Wait(ctx, "the API server is ready", func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.addr+"/readyz", nil)
		if err != nil {
			return err
		}
		response, err := s.client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("GET /readyz: %s", response.Status)
		}
		return nil
	}, s.etcd, s.api)
}

// daemon starts one of the programs, which ends with this process at the latest.
func (s *Server) daemon(name string, args ...string) (*proc.Process, error) {
	cmd := exec.Command(s.bins.Path(name), args...)
	cmd.Dir, cmd.Env = s.dir, os.Environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return proc.Start(name, filepath.Join(s.dir, name+".log"), cmd, (*exec.Cmd).Start)
}

// Logs is the end of the logs, for a failed test.
func (s *Server) Logs(lines int) string {
	return "--- etcd\n" + s.etcd.Tail(lines) + "\n--- kube-apiserver\n" + s.api.Tail(lines)
}

// close ends the programs at once: the API server takes a minute to end by itself.
func (s *Server) close() {
	for _, p := range []*proc.Process{s.api, s.etcd} {
		if p != nil {
			p.Kill()
		}
	}
}

// freeAddr is a loopback address that nothing listens on, with a port below those that the kernel
// gives to connections. If there is none, the program that is given it says so.
func freeAddr() string {
	for {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000)))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
}
