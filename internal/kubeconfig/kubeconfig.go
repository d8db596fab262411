// Package kubeconfig is what clients of Kubernetes read: kubeconfig files, into which
// it puts a cluster behind the gateway and leaves everything else as it was, and what a
// credential plugin, which such a file names, is asked and answers.
//
// It uses no library of Kubernetes. A file is edited as a tree of YAML, so that what it
// does not know stays: order, comments, other programs' entries.
package kubeconfig

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"

	"postern.dev/postern/internal/wire"
)

// Entry is one cluster in a kubeconfig file: a cluster, a user and a context of the
// same name.
type Entry struct {
	Name    string
	Cluster Cluster
	User    User
	Use     bool // make it the current context
	Replace bool // also what another program or a person made under that name
}

// Cluster says where an API server is.
type Cluster struct {
	Server        string // https://HOST[:PORT]/PATH
	CA            []byte // certificates in PEM; nil for those that the machine trusts
	TLSServerName string // the name in the server's certificate, if it is not the host
	ProxyURL      string // without a password: files like this one are copied
}

// User says how a client proves who it is. One of the two is set.
type User struct {
	Exec      *Exec
	TokenFile string // absolute; the bare token
}

// Exec is a credential plugin, as client.authentication.k8s.io/v1 has it. Its JSON is
// also the "execConfig" of a ClusterProfile access provider (KEP-5339).
type Exec struct {
	APIVersion         string   `json:"apiVersion" yaml:"apiVersion"`
	Command            string   `json:"command" yaml:"command"`
	Args               []string `json:"args" yaml:"args"`
	Env                []EnvVar `json:"env" yaml:"env,omitempty"`
	InstallHint        string   `json:"installHint,omitempty" yaml:"installHint,omitempty"`
	InteractiveMode    string   `json:"interactiveMode" yaml:"interactiveMode"`
	ProvideClusterInfo bool     `json:"provideClusterInfo" yaml:"provideClusterInfo"`
}

// EnvVar is a variable of a plugin's environment, on top of the client's own.
type EnvVar struct {
	Name  string `json:"name" yaml:"name"`
	Value string `json:"value" yaml:"value"`
}

// NewExec returns the plugin that is called with these arguments. It never reads
// standard input, and is told about the cluster, so that it can refuse to send its
// credentials elsewhere.
func NewExec(command string, args []string, env ...EnvVar) *Exec {
	return &Exec{
		APIVersion: apiV1, Command: command, Args: args, Env: env, InteractiveMode: "IfAvailable", ProvideClusterInfo: true,
		InstallHint: "postern is not in PATH: install it, or write the kubeconfig again with: postern kubeconfig CLUSTER",
	}
}

// The lists of a kubeconfig file, with the key under which each keeps what it holds.
const (
	clusters = "clusters"
	users    = "users"
	contexts = "contexts"
)

// marker is the name of the extension by which our own entries are known.
const marker = "postern.dev"

type extension struct {
	Name      string `yaml:"name"`
	Extension struct {
		Provider string `yaml:"provider"`
	} `yaml:"extension"`
}

func mark() []extension {
	e := extension{Name: marker}
	e.Extension.Provider = marker
	return []extension{e}
}

// These are the parts of a file that are ours.
type (
	clusterBody struct {
		CA            string      `yaml:"certificate-authority-data,omitempty"`
		Extensions    []extension `yaml:"extensions"`
		ProxyURL      string      `yaml:"proxy-url,omitempty"`
		Server        string      `yaml:"server"`
		TLSServerName string      `yaml:"tls-server-name,omitempty"`
	}
	userBody struct {
		Exec       *Exec       `yaml:"exec,omitempty"`
		Extensions []extension `yaml:"extensions"`
		TokenFile  string      `yaml:"tokenFile,omitempty"`
	}
	contextBody struct {
		Cluster    string      `yaml:"cluster"`
		Extensions []extension `yaml:"extensions"`
		User       string      `yaml:"user"`
	}
)

// Merge puts an entry into the text of a kubeconfig file, which may be empty. What is
// there already stays as it was, and a text that has the entry already is returned as it
// is. What somebody else made under the entry's name is not touched, unless Replace says
// so: that is a *wire.Failure.
func Merge(text []byte, e Entry) ([]byte, error) {
	doc, err := parse(text)
	if err != nil {
		return nil, err
	}
	before, err := doc.text()
	if err != nil {
		return nil, err
	}
	bodies := []struct {
		list, key string
		body      any
		own       []string // keys that are ours; nil: all
	}{
		{clusters, "cluster", clusterBody{
			Server: e.Cluster.Server, CA: base64.StdEncoding.EncodeToString(e.Cluster.CA), TLSServerName: e.Cluster.TLSServerName,
			ProxyURL: e.Cluster.ProxyURL, Extensions: mark(),
		}, []string{"server", "certificate-authority", "certificate-authority-data", "insecure-skip-tls-verify", "tls-server-name", "proxy-url"}},
		{contexts, "context", contextBody{Cluster: e.Name, User: e.Name, Extensions: mark()}, []string{"cluster", "user"}},
		{users, "user", userBody{Exec: e.User.Exec, TokenFile: e.User.TokenFile, Extensions: mark()}, nil},
	}
	for _, b := range bodies {
		if err := doc.put(b.list, b.key, e.Name, b.body, b.own, e.Replace); err != nil {
			return nil, err
		}
	}
	if e.Use || doc.current() == "" && doc.only(e.Name) {
		doc.setCurrent(e.Name)
	}
	return doc.unlessSame(text, before)
}

// Remove takes our entry of that name out of the text of a kubeconfig file. found tells
// whether there was one.
func Remove(text []byte, name string) (without []byte, found bool, err error) {
	doc, err := parse(text)
	if err != nil {
		return nil, false, err
	}
	before, err := doc.text()
	if err != nil {
		return nil, false, err
	}
	for list, key := range map[string]string{clusters: "cluster", users: "user", contexts: "context"} {
		removed, err := doc.remove(list, key, name)
		if err != nil {
			return nil, false, err
		}
		found = found || removed
	}
	if found && doc.current() == name {
		doc.setCurrent("")
	}
	without, err = doc.unlessSame(text, before)
	return without, found, err
}

// document is a kubeconfig file as a tree.
type document struct {
	node    yaml.Node
	root    *yaml.Node // its mapping
	compact bool       // lists are not indented, as kubectl writes them
}

// skeleton is a file with nothing in it.
const skeleton = "apiVersion: v1\nkind: Config\nclusters: []\ncontexts: []\ncurrent-context: \"\"\npreferences: {}\nusers: []\n"

func parse(text []byte) (*document, error) {
	d := &document{compact: true}
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte(skeleton)
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&d.node); errors.Is(err, io.EOF) { // comments only
		if err := yaml.Unmarshal([]byte(skeleton), &d.node); err != nil {
			return nil, badFile("%s", err)
		}
	} else if err != nil {
		return nil, badFile("%s", err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, badFile("it holds more than one document")
	}
	if d.node.Kind != yaml.DocumentNode || len(d.node.Content) != 1 || d.node.Content[0].Kind != yaml.MappingNode {
		return nil, badFile("it is no mapping")
	}
	d.root = d.node.Content[0]
	if kind := value(d.root, "kind"); kind != nil && kind.Value != "Config" {
		return nil, badFile("its kind is %.40q", kind.Value)
	}
	for i := 0; i+1 < len(d.root.Content); i += 2 {
		if key, list := d.root.Content[i], d.root.Content[i+1]; list.Kind == yaml.SequenceNode && list.Style&yaml.FlowStyle == 0 {
			d.compact = list.Column <= key.Column
			break
		}
	}
	return d, nil
}

func badFile(format string, args ...any) *wire.Failure {
	return wire.Fail(wire.LegClient, wire.CodeBadRequest, "it is no kubeconfig: %s", fmt.Sprintf(format, args...)).
		WithHint("mend it, or write a file of its own with --output FILE")
}

func (d *document) text() ([]byte, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if d.compact {
		enc.CompactSeqIndent()
	}
	if err := enc.Encode(&d.node); err != nil {
		return nil, fmt.Errorf("encode kubeconfig: %w", err)
	}
	if err := enc.Close(); err != nil {
		return nil, fmt.Errorf("encode kubeconfig: %w", err)
	}
	return b.Bytes(), nil
}

// unlessSame returns the document's text, or the one that it came from if nothing has
// changed in it.
func (d *document) unlessSame(original, before []byte) ([]byte, error) {
	after, err := d.text()
	if err != nil {
		return nil, err
	}
	if bytes.Equal(before, after) && len(bytes.TrimSpace(original)) > 0 {
		return original, nil
	}
	return after, nil
}
