package e2e_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// The commands of the documents are run by a test. A fenced block of shell says
// by the words after its language how:
//
//	```sh tested                      run, and has to succeed
//	```sh tested background           keeps running to the document's end
//	```sh tested background wait=TEXT the next block waits until it prints TEXT
//	```sh ci                          run by .ci/run, not here
//	```sh kube                        run by test/kube, in a real cluster
//	```sh systemd                     run by TestPackages, on a machine with systemd
//	```sh guides                      run by test/guides, with the real programs that it is about
//
// What a reader has already, such as a database, is set up by a comment that no
// reader sees: "<!-- tested" on a line, then shell, then "-->". All blocks of a
// document are one script, which runs in a directory and a network of its own.
type block struct {
	line  int
	words []string
	text  string
}

func (b block) is(word string) bool { return slices.Contains(b.words, word) }

// wait returns what to wait for in a background block's output.
func (b block) wait() string {
	for _, word := range b.words {
		if text, ok := strings.CutPrefix(word, "wait="); ok {
			return text
		}
	}
	return ""
}

// blocks returns the shell blocks and hidden set-up comments of a document.
func blocks(text string) []block {
	var (
		found []block
		open  *block
		end   string
	)
	for i, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimSpace(line)
		switch {
		case open != nil && trimmed == end:
			found = append(found, *open)
			open = nil
		case open != nil:
			open.text += line + "\n"
		case strings.HasPrefix(trimmed, "```"):
			open, end = &block{line: i + 1, words: strings.Fields(trimmed[3:])}, "```"
		case trimmed == "<!-- tested":
			open, end = &block{line: i + 1, words: []string{"sh", "tested"}}, "-->"
		}
	}
	return slices.DeleteFunc(found, func(b block) bool {
		return len(b.words) == 0 || !slices.Contains([]string{"sh", "bash", "shell", "console"}, b.words[0])
	})
}

// documents returns the paths of all documents, relative to the root.
func documents(t *testing.T) []string {
	t.Helper()
	var paths []string
	root := harness.Root()
	top, err := filepath.Glob(filepath.Join(root, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	paths = append(paths, top...)
	err = filepath.WalkDir(filepath.Join(root, "docs"), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && strings.HasSuffix(path, ".md") {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, path := range paths {
		if paths[i], err = filepath.Rel(root, path); err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

// TestDocumentsAreTested looks that every command in a document is run by some
// test, and that every link between documents leads somewhere.
func TestDocumentsAreTested(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:\s]+)(#[^)]*)?\)`)
	for _, path := range documents(t) {
		text := read(t, path)
		if !strings.HasPrefix(path, "docs/reference/") {
			for _, b := range blocks(text) {
				if !b.is("tested") && !b.is("ci") && !b.is("kube") && !b.is("systemd") && !b.is("guides") {
					t.Errorf("%s:%d: commands that no test runs; write ```sh tested", path, b.line)
				}
			}
		}
		for _, match := range link.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(harness.Root(), filepath.Dir(path), match[1])); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", path, match[1])
			}
		}
	}
}

// TestDocuments runs the commands of each document, in order; several documents at once.
func TestDocuments(t *testing.T) {
	t.Parallel()
	harness.Need(t, "iproute2", "ip")
	harness.Need(t, "curl", "curl")
	harness.Need(t, "postgresql-15", "initdb")
	harness.Need(t, "postgresql-client-15", "psql")
	for _, path := range documents(t) {
		found := slices.DeleteFunc(blocks(read(t, path)), func(b block) bool { return !b.is("tested") })
		if len(found) == 0 {
			continue
		}
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			deadline(t)
			runDocument(t, path, found)
		})
	}
}

func runDocument(t *testing.T, path string, found []block) {
	t.Helper()
	var script strings.Builder
	script.WriteString("set -euo pipefail\nip link set lo up\ncd \"$WORK\"\n")
	for i, b := range found {
		fmt.Fprintf(&script, "echo '== %s:%d'\n", path, b.line)
		if !b.is("background") {
			script.WriteString(b.text)
			continue
		}
		fmt.Fprintf(&script, "{ %s } </dev/null >%d.log 2>&1 &\n", b.text, i)
		if text := b.wait(); text != "" {
			fmt.Fprintf(&script, "await %d.log %q $!\n", i, text)
		}
	}
	work := t.TempDir()
	tools := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(tools, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("script", script.String())
	write("await", awaitScript)
	write("start-postgres", postgresScript)
	for name, program := range map[string]string{"postern": programs.Postern, "postern-agent": programs.Agent} {
		if err := os.Symlink(program, filepath.Join(tools, name)); err != nil {
			t.Fatal(err)
		}
	}
	// A network of its own lets every document use the ports that it names, and
	// a process tree of its own leaves nothing behind.
	args := []string{"--net", "--pid", "--fork", "--kill-child", "bash", filepath.Join(tools, "script")}
	if os.Geteuid() != 0 {
		args = append([]string{"--map-root-user"}, args...)
	}
	cmd := exec.Command("unshare", args...)
	cmd.Env = append(harness.BaseEnv(work), "WORK="+work, "PATH="+tools+":/usr/lib/postgresql/15/bin:/usr/sbin:"+os.Getenv("PATH"))
	cmd.WaitDelay = time.Second
	timer := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err == nil {
		return
	}
	t.Errorf("%s: %v", path, err)
	logs, err := filepath.Glob(filepath.Join(work, "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, log := range logs {
		if text, err := os.ReadFile(log); err == nil {
			t.Logf("%s:\n%s", filepath.Base(log), text)
		}
	}
}

// awaitScript waits until a file has a text: await FILE TEXT PID.
const awaitScript = `#!/usr/bin/env bash
for _ in $(seq 600); do
	if grep -qi -e "$2" "$1"; then exit 0; fi
	if ! kill -0 "$3" 2>/dev/null; then
		echo "it ended before it printed \"$2\":"
		cat "$1"
		exit 1
	fi
	sleep 0.1
done
echo "it has not printed \"$2\":"
cat "$1"
exit 1
`

// postgresScript starts a database on a port: start-postgres PORT.
const postgresScript = `#!/usr/bin/env bash
set -euo pipefail
dir=$(mktemp -d)
run() { "$@"; }
if [ "$(id -u)" = 0 ]; then
	chown postgres "$dir"
	run() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
fi
cd "$dir"
run initdb -D "$dir/data" -U postgres -A trust --no-sync --locale=C >/dev/null
run postgres -D "$dir/data" -h 127.0.0.1 -p "$1" -k "$dir" -c fsync=off >"$dir/log" 2>&1 &
await "$dir/log" "ready to accept connections" $!
`

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(harness.Root(), path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
