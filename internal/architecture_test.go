package internal_test

import (
	"fmt"
	"go/ast"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// layers says which layer each package below internal/ belongs to; a package
// in a directory below one of these belongs to the same. Imports go down, or
// sideways up to layer 2. ARCHITECTURE.md tells what each package is for.
var layers = map[string]int{
	"wire": 0, "limit": 0, "policy": 0, "identity": 0, "config": 0, "archive": 0, "role": 0, "joinstring": 0, "workload": 0, "controlplane": 0, "access": 0, "orders": 0, "copybuffer": 0, "secretfile": 0, "wholefile": 0, "headroom": 0, "kubeurl": 0,
	"assertion": 0, "kubeauth": 0, "kubestatus": 0, "kubeconfig": 0,
	"pipe": 1, "stream": 1, "observe": 1, "uplink": 1, "reach": 1, "api": 1, "webconn": 1, "audit": 1, "oidc": 1, "exchange": 1, "podcluster": 1,
	"bus": 2, "relay": 2, "registry": 2, "enroll": 2, "party": 2, "login": 2, "impersonate": 2,
	"agent": 3, "proxy": 3, "gateway": 3, "install": 3, "issuer": 3,
	"doctor": 3, "hub": 3, "demo": 3,
	"cli": 4,
}

const (
	layerRoles = 3 // the layer whose packages stand alone
	layerTest  = -1
)

// testOnly packages serve tests and may not be imported by what ships.
var testOnly = []string{"testnet", "fenced"}

// bans are imports that only some directories may make.
var bans = []struct {
	name    string
	match   func(imported string) bool
	allowed []string // directories, with all below them
	why     string
}{
	{
		name:    "NATS server",
		match:   prefix("github.com/nats-io/nats-server/"),
		allowed: []string{"internal/bus/embedded"},
		why:     "the agent for the edge must not carry a server: it would double its size and memory",
	},
	{
		name:    "NATS client",
		match:   prefix("github.com/nats-io/"),
		allowed: []string{"internal/bus"},
		why:     "the bus decides about subjects, reconnects and replies in one place; others see its own small types",
	},
	{
		name:    "command line library",
		match:   prefix("github.com/spf13/"),
		allowed: []string{"internal/cli", "operator/cli"},
		why:     "a role is configured by a struct and run by Run(ctx), so that tests and `postern dev` can do it too",
	},
	{
		name:    "Kubernetes library",
		match:   isKubernetes,
		allowed: []string{"test/kube", "dialer/kube", "operator"},
		why:     "the tunnel runs where there is no Kubernetes; its libraries would multiply the size of every program",
	},
}

func prefix(p string) func(string) bool {
	return func(imported string) bool { return strings.HasPrefix(imported, p) }
}

func isKubernetes(imported string) bool {
	return strings.HasPrefix(imported, "k8s.io/") || strings.HasPrefix(imported, "sigs.k8s.io/")
}

func TestLayers(t *testing.T) {
	for _, file := range loadSources(t, "..") {
		for _, problem := range layerProblems(file) {
			t.Error(problem)
		}
	}
}

// layerProblems checks the imports of one file within the main module.
func layerProblems(file sourceFile) []string {
	var problems []string
	from, known := layerOf(file.importPath())
	if !known {
		return []string{fmt.Sprintf("%s: package has no layer: add it to the table in internal/architecture_test.go", file.path)}
	}
	for _, imported := range file.imports {
		if !strings.HasPrefix(imported, rootModule+"/") {
			continue
		}
		to, known := layerOf(imported)
		switch {
		case !known:
			problems = append(problems, fmt.Sprintf("%s imports %s, which has no layer", file.path, imported))
		case file.test || from == layerTest:
			// A test may put together what it likes.
		case to == layerTest:
			problems = append(problems, fmt.Sprintf("%s imports %s, which is for tests only", file.path, imported))
		case to > from:
			problems = append(problems, fmt.Sprintf("%s (layer %d) imports %s (layer %d): imports go down, so that a layer can be "+
				"understood and tested without those above it", file.path, from, imported, to))
		case to == layerRoles && from == layerRoles && component(imported) != component(file.importPath()) &&
			component(file.importPath()) != "hub":
			problems = append(problems, fmt.Sprintf("%s imports %s: packages of layer 3 do not know each other, so that each runs "+
				"without the others; the hub puts them together through small interfaces", file.path, imported))
		}
	}
	return problems
}

// layerOf returns the layer of a package of the main module.
func layerOf(path string) (layer int, known bool) {
	rel := strings.TrimPrefix(strings.TrimPrefix(path, rootModule), "/")
	switch {
	case strings.HasPrefix(rel, "cmd/"):
		return 5, true // a main is one call
	case rel == "" || rel == "internal" || strings.HasPrefix(rel, "test/") || strings.HasPrefix(rel, "docs/") || strings.HasPrefix(rel, "tools/"):
		return layerTest, true
	case rel == "charts":
		return 0, true // files and their names
	case rel == "dialer":
		return 4, true // the public API puts roles together, as the command line does
	case rel == "dialer/kube":
		return 5, true // a module of its own, on top of the public API
	case rel == "operator/kubetest":
		return layerTest, true
	case strings.HasPrefix(rel, "operator/"):
		return 5, true // a module of its own, on top of what it shares with the roles
	}
	name := component(path)
	if slices.Contains(testOnly, name) {
		return layerTest, true
	}
	layer, known = layers[name]
	return layer, known
}

// component returns the name of the directory below internal/ that a package is in.
func component(path string) string {
	name, ok := strings.CutPrefix(path, rootModule+"/internal/")
	if !ok {
		return ""
	}
	name, _, _ = strings.Cut(name, "/")
	return name
}

func TestBannedImports(t *testing.T) {
	for _, file := range loadSources(t, "..") {
		for _, problem := range banProblems(file) {
			t.Error(problem)
		}
	}
}

func banProblems(file sourceFile) []string {
	var problems []string
	for _, ban := range bans {
		allowed := slices.ContainsFunc(ban.allowed, func(dir string) bool {
			return file.dir == dir || strings.HasPrefix(file.dir, dir+"/")
		})
		if allowed {
			continue
		}
		for _, imported := range file.imports {
			if ban.match(imported) {
				problems = append(problems, fmt.Sprintf("%s imports %s; only %s may: %s",
					file.path, imported, strings.Join(ban.allowed, ", "), ban.why))
			}
		}
	}
	return problems
}

// TestRootModuleHasNoKubernetes looks at go.mod too: an indirect requirement is
// one that go.sum, scanners and downloads pay for.
func TestRootModuleHasNoKubernetes(t *testing.T) {
	mod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mod)) {
		if fields := strings.Fields(line); len(fields) > 0 && isKubernetes(fields[0]) {
			t.Errorf("go.mod requires %s: the tunnel does without Kubernetes libraries", fields[0])
		}
	}
}

// TestEdgeAgentIsSmall asks the toolchain what the agent for the edge links.
func TestEdgeAgentIsSmall(t *testing.T) {
	if _, err := os.Stat("../cmd/postern-agent"); os.IsNotExist(err) {
		t.Fatal("cmd/postern-agent does not exist")
	}
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", "./cmd/postern-agent")
	list.Dir = ".."
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		for _, bad := range []string{"github.com/nats-io/nats-server", rootModule + "/internal/hub", rootModule + "/internal/relay"} {
			if strings.HasPrefix(dep, bad) {
				t.Errorf("cmd/postern-agent links %s: the agent for the edge is at most 20 MB", dep)
			}
		}
	}
}

func TestPackagesAreDocumented(t *testing.T) {
	type state struct{ documented, hasCode bool }
	packages := map[string]*state{}
	for _, file := range loadSources(t, "..") {
		if packages[file.dir] == nil {
			packages[file.dir] = &state{}
		}
		if !file.test {
			packages[file.dir].hasCode = true
			packages[file.dir].documented = packages[file.dir].documented || isPackageDoc(file)
		}
	}
	for dir, s := range packages {
		if s.hasCode && !s.documented {
			t.Errorf("%s: no file has a package comment that says what it does and for whom", dir)
		}
	}
}

func isPackageDoc(file sourceFile) bool {
	if file.pkg == "main" {
		return strings.HasPrefix(file.doc, "Command ")
	}
	return strings.HasPrefix(file.doc, "Package "+file.pkg+" ")
}

const (
	longFile    = 350 // lines; longer ones are reported
	tooLongFile = 600 // lines; longer ones fail
)

func TestFilesAreShort(t *testing.T) {
	for _, file := range loadSources(t, "..") {
		switch {
		case file.generated:
		case file.lines > tooLongFile:
			t.Errorf("%s has %d lines; at most %d: a file holds one thing that a reader can keep in mind", file.path, file.lines, tooLongFile)
		case file.lines > longFile:
			t.Logf("%s has %d lines; files are rarely over %d", file.path, file.lines, longFile)
		}
	}
}

func TestNoHiddenBehaviour(t *testing.T) {
	for _, file := range loadSources(t, "..") {
		for _, problem := range hiddenProblems(file) {
			t.Error(problem)
		}
	}
}

// hiddenProblems finds init functions, which act without being called, and
// skipped tests, which look like passed ones, unless an issue says when they
// come back.
func hiddenProblems(file sourceFile) []string {
	var problems []string
	if file.generated {
		return nil
	}
	for _, decl := range file.syntax.Decls {
		if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			problems = append(problems, file.path+" has an init function: make it a constructor that its user calls")
		}
	}
	if !file.test {
		return problems
	}
	ast.Inspect(file.syntax, func(n ast.Node) bool {
		if fn, ok := n.(*ast.FuncLit); ok && discardsInputs(fn) {
			return false
		}
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		method, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, method.Sel.Name) {
			return true
		}
		receiver, ok := method.X.(*ast.Ident)
		if !ok || !slices.Contains([]string{"t", "b", "f", "tb"}, receiver.Name) {
			return true
		}
		if len(call.Args) > 0 {
			if text, ok := call.Args[0].(*ast.BasicLit); ok && text.Kind == token.STRING && strings.Contains(text.Value, "#") {
				return true
			}
		}
		problems = append(problems, fmt.Sprintf("%s calls %s.%s without an issue's number (\"#12: …\"): a skipped test is a promise without a date",
			file.path, receiver.Name, method.Sel.Name))
		return true
	})
	return problems
}

// discardsInputs says whether a function is called with inputs that were drawn
// at random. There, to skip means to ask for another.
func discardsInputs(fn *ast.FuncLit) bool {
	params := fn.Type.Params.List
	if len(params) == 0 {
		return false
	}
	pointer, ok := params[0].Type.(*ast.StarExpr)
	if !ok {
		return false
	}
	kind, ok := pointer.X.(*ast.SelectorExpr)
	if !ok || kind.Sel.Name != "T" {
		return false
	}
	from, ok := kind.X.(*ast.Ident)
	isFuzz := len(params) > 1 // f.Fuzz(func(t *testing.T, in []byte) {…})
	return ok && (from.Name == "rapid" || isFuzz)
}

// TestRules gives each rule a file that breaks it, so that a rule which has
// stopped to look is noticed.
func TestRules(t *testing.T) {
	tests := []struct {
		path, src string
		check     func(sourceFile) []string
		want      string // part of the only problem; none when empty
	}{
		{"internal/pipe/a.go", `package pipe; import _ "postern.dev/postern/internal/wire"`, layerProblems, ""},
		{"internal/relay/a.go", `package relay; import _ "postern.dev/postern/internal/bus"`, layerProblems, ""},
		{"internal/hub/a.go", `package hub; import _ "postern.dev/postern/internal/agent"`, layerProblems, ""},
		{"internal/wire/a.go", `package wire; import _ "postern.dev/postern/internal/pipe"`, layerProblems, "imports go down"},
		{"internal/agent/a.go", `package agent; import _ "postern.dev/postern/internal/proxy"`, layerProblems, "do not know each other"},
		{"internal/agent/a.go", `package agent; import _ "postern.dev/postern/internal/testnet"`, layerProblems, "for tests only"},
		{"internal/agent/a_test.go", `package agent; import _ "postern.dev/postern/internal/testnet"`, layerProblems, ""},
		{"internal/misc/a.go", `package misc`, layerProblems, "no layer"},
		{"internal/agent/a.go", `package agent; import _ "postern.dev/postern/internal/misc"`, layerProblems, "no layer"},
		{"internal/bus/a.go", `package bus; import _ "github.com/nats-io/nats.go"`, banProblems, ""},
		{"internal/bus/a.go", `package bus; import _ "github.com/nats-io/nats-server/v2/server"`, banProblems, "internal/bus/embedded"},
		{"internal/agent/a.go", `package agent; import _ "github.com/nats-io/nkeys"`, banProblems, "only internal/bus"},
		{"internal/hub/a.go", `package hub; import _ "github.com/spf13/cobra"`, banProblems, "only internal/cli"},
		{"internal/hub/a.go", `package hub; import _ "k8s.io/client-go/rest"`, banProblems, "Kubernetes"},
		{"internal/hub/a.go", `package hub; func init() {}`, hiddenProblems, "init function"},
		{"internal/hub/a_test.go", `package hub; func TestX(t *testing.T) { t.Skip("flaky") }`, hiddenProblems, "issue's number"},
		{"internal/hub/a_test.go", `package hub; func TestX(t *testing.T) { t.Skip("#12: needs two nodes") }`, hiddenProblems, ""},
		{"internal/hub/a_test.go", `package hub; var _ = func(t *rapid.T) { t.Skip() }`, hiddenProblems, ""},
		{"internal/hub/a_test.go", `package hub; var _ = func(t *testing.T, in []byte) { t.Skip() }`, hiddenProblems, ""},
	}
	for _, tt := range tests {
		file, err := parseSource(tt.path, []byte(tt.src))
		if err != nil {
			t.Fatal(err)
		}
		got := tt.check(file)
		switch {
		case tt.want == "" && len(got) > 0:
			t.Errorf("%s %q: unexpected: %v", tt.path, tt.src, got)
		case tt.want != "" && (len(got) == 0 || !strings.Contains(got[0], tt.want)):
			t.Errorf("%s %q: got %q, want one with %q", tt.path, tt.src, got, tt.want)
		}
	}
}

// TestModulesAreListed keeps every module under the tests' and linter's eyes:
// the Makefile finds operator, and modules one level below dialer/ and test/ only.
func TestModulesAreListed(t *testing.T) {
	for _, dir := range nestedModules(t, "..") {
		inTest, err := filepath.Match("test/*", dir)
		inDialer, err2 := filepath.Match("dialer/*", dir)
		if err != nil || err2 != nil || dir != "operator" && !inTest && !inDialer && !strings.HasPrefix(dir, "tools/") {
			t.Errorf("%s has a go.mod of its own; the Makefile's MODULES does not find it", dir)
		}
	}
}
