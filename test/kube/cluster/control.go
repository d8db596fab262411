//go:build linux

package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"postern.dev/postern/test/kube/pki"
	"postern.dev/postern/test/kube/proc"
)

// Server is the API server's URL as the cluster's documents give it: it resolves inside only.
const Server = "https://kubernetes.default.svc.cluster.local"

const etcdURL = "http://127.0.0.1:2379"

// direct is the API server's URL for the cluster's own parts.
func (c *Cluster) direct() string {
	return "https://" + net.JoinHostPort(c.site.nodeIP, strconv.Itoa(APIPort))
}

// startControlPlane starts etcd and the API server, waits for it, and starts what watches it.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	etcd, err := c.daemon(c.bins.Path("etcd"),
		"--data-dir", c.path("etcd"), "--name", nodeName,
		"--listen-client-urls", etcdURL, "--advertise-client-urls", etcdURL,
		"--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
		"--initial-cluster", nodeName+"=http://127.0.0.1:2380",
		"--unsafe-no-fsync", "--log-level", "warn")
	if err != nil {
		return err
	}
	if err := c.startAPIServer(); err != nil {
		return err
	}
	if err := c.waitForAPIServer(ctx, etcd); err != nil {
		return err
	}
	if err := c.startController("kube-controller-manager", "system:kube-controller-manager",
		"--root-ca-file", c.pki.CertFile(),
		"--service-account-private-key-file", c.path("pki", "accounts.key"),
		"--cluster-signing-cert-file", c.pki.CertFile(), "--cluster-signing-key-file", c.pki.KeyFile(),
		"--use-service-account-credentials=true"); err != nil {
		return err
	}
	return c.startController("kube-scheduler", "system:kube-scheduler")
}

// waitForAPIServer waits until the API server is ready.
func (c *Cluster) waitForAPIServer(ctx context.Context, others ...*proc.Process) error {
	client, err := c.adminClient()
	if err != nil {
		return err
	}
	return proc.Wait(ctx, "the API server is ready", func(ctx context.Context) error {
		return getOK(ctx, client, c.direct()+"/readyz")
	}, append(others, c.api)...)
}

func (c *Cluster) startAPIServer() error {
	serving, err := c.pki.Issue("apiserver", pki.Subject{Name: "kube-apiserver", Hosts: []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		"localhost", "127.0.0.1", serviceIP, c.site.nodeIP,
	}})
	if err != nil {
		return err
	}
	kubelet, err := c.pki.Issue("apiserver-kubelet", pki.Subject{Name: "kube-apiserver-kubelet-client", Groups: []string{"system:masters"}})
	if err != nil {
		return err
	}
	accounts, err := c.pki.SigningKey("accounts")
	if err != nil {
		return err
	}
	if c.admin, err = c.pki.Issue("admin", pki.Subject{Name: "admin", Groups: []string{"system:masters"}}); err != nil {
		return err
	}
	c.apiArgs = append([]string{
		"--etcd-servers", etcdURL,
		"--bind-address", c.site.nodeIP, "--advertise-address", c.site.nodeIP, "--secure-port", strconv.Itoa(APIPort),
		"--tls-cert-file", serving.CertFile, "--tls-private-key-file", serving.KeyFile,
		"--client-ca-file", c.pki.CertFile(),
		"--service-account-issuer", Server,
		"--service-account-key-file", accounts.CertFile, "--service-account-signing-key-file", accounts.KeyFile,
		"--service-cluster-ip-range", serviceRange,
		"--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction",
		"--allow-privileged=true", "--profiling=false",
		"--kubelet-preferred-address-types", "InternalIP",
		"--kubelet-certificate-authority", c.pki.CertFile(),
		"--kubelet-client-certificate", kubelet.CertFile, "--kubelet-client-key", kubelet.KeyFile,
	}, c.opts.APIServer...)
	c.api, err = c.daemon(c.bins.Path("kube-apiserver"), c.apiArgs...)
	return err
}

// startController starts a program of the control plane that is a client of the API server.
func (c *Cluster) startController(name, user string, args ...string) error {
	kubeconfig, err := c.userKubeconfig(name, pki.Subject{Name: user})
	if err != nil {
		return err
	}
	_, err = c.daemon(c.bins.Path(name), append([]string{
		"--kubeconfig", kubeconfig, "--authentication-kubeconfig", kubeconfig, "--authorization-kubeconfig", kubeconfig,
		"--bind-address", "127.0.0.1", "--leader-elect=false", "--profiling=false",
	}, args...)...)
	return err
}

// userKubeconfig makes a certificate and a kubeconfig for one of the cluster's own parts.
func (c *Cluster) userKubeconfig(file string, subject pki.Subject) (string, error) {
	pair, err := c.pki.Issue(file, subject)
	if err != nil {
		return "", err
	}
	name := c.path("pki", file+".kubeconfig")
	return name, pki.Kubeconfig{Server: c.direct(), CA: c.pki.CertPEM(), Client: pair}.WriteFile(name)
}

// adminClient is an HTTP client of the API server, inside the private network.
func (c *Cluster) adminClient() (*http.Client, error) {
	cert, err := c.admin.TLS()
	if err != nil {
		return nil, fmt.Errorf("read the administrator's certificate: %w", err)
	}
	return &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			DialContext:       c.box.DialContext,
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{RootCAs: c.pki.Pool(), Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		},
	}, nil
}

// getOK is nil if the URL answers 200.
func getOK(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4096))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %s", url, response.Status, body)
	}
	return nil
}
