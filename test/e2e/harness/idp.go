package harness

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// IDP is a running identity provider: oidc-provider of npm, which is certified by
// the OpenID Foundation. It runs under Node.
type IDP struct {
	*Process
	Issuer string
}

// StartIDP installs the provider into the user's cache directory, if it is not there
// yet, and starts it.
func StartIDP(t testing.TB) *IDP {
	t.Helper()
	dir := installIDP(t)
	p := &IDP{Process: Start(t, Spec{Name: "identity provider", Path: Need(t, "nodejs", "node"), Args: []string{"server.mjs"}, Dir: dir})}
	line := regexp.MustCompile(`\{"issuer":"([^"]+)"\}`)
	Eventually(t, 30*time.Second, "the identity provider starts", func() error {
		if m := line.FindStringSubmatch(p.Log()); m != nil {
			p.Issuer = m[1]
			return nil
		}
		if !p.Running() {
			return Permanent(fmt.Errorf("it ended"))
		}
		return fmt.Errorf("it does not tell its address")
	})
	return p
}

// installIDP returns a directory with the provider and its packages. What is in it
// depends on the lock file, which names every package with its hash.
func installIDP(t testing.TB) string {
	t.Helper()
	source := filepath.Join(Root(), "test", "e2e", "idp")
	sum := sha256.New()
	files := map[string][]byte{}
	for _, name := range []string{"package.json", "package-lock.json", "server.mjs"} {
		b, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
		sum.Write(b)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "postern", "e2e-idp-"+hex.EncodeToString(sum.Sum(nil)[:8]))
	done := filepath.Join(dir, "node_modules", ".installed")
	if _, err := os.Stat(done); err == nil {
		return dir
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(done); err == nil {
		return dir // another run of the tests was quicker
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println("installing the identity provider of the tests into", dir)
	npm := exec.CommandContext(t.Context(), Need(t, "npm", "npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	npm.Dir = dir
	if out, err := npm.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	if err := os.WriteFile(done, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Person makes a person known, or changes what is known. Claims are those of the ID
// token; "gone" means that the person has left.
func (p *IDP) Person(t testing.TB, name string, claims map[string]any) {
	t.Helper()
	p.order(t, "person", map[string]any{"name": name, "claims": claims})
}

// Rotate replaces the key that ID tokens are signed with.
func (p *IDP) Rotate(t testing.TB) {
	t.Helper()
	p.order(t, "rotate", map[string]any{"issuer": p.Issuer})
}

func (p *IDP) order(t testing.TB, what string, order map[string]any) {
	t.Helper()
	b, err := json.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Post(p.Issuer+"/test/"+what, "application/json", bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatalf("order %s: %s", what, res.Status)
	}
}

// The parts of the provider's pages that matter.
var (
	formTag   = regexp.MustCompile(`(?is)<form[^>]*\baction="([^"]*)"[^>]*>(.*?)</form>`)
	inputTag  = regexp.MustCompile(`(?is)<(?:input|button)\b[^>]*>`)
	attribute = regexp.MustCompile(`(?is)\b(name|value)="([^"]*)"`)
)

// Browse does what a person does in a browser who opens an address: signs in with a
// name and agrees to everything. A code is entered where one is asked for. It returns
// the last page.
func (p *IDP) Browse(t testing.TB, address, name, code string) string {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Jar: jar, Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get(address)
	for range 10 {
		if err != nil {
			t.Fatalf("browse: %v", err)
		}
		b, readErr := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		_ = res.Body.Close()
		if readErr != nil {
			t.Fatal(readErr)
		}
		page := string(b)
		form := formTag.FindStringSubmatch(page)
		if form == nil {
			return page
		}
		action, parseErr := res.Request.URL.Parse(html.UnescapeString(form[1]))
		if parseErr != nil {
			t.Fatal(parseErr)
		}
		res, err = client.PostForm(action.String(), fill(form[2], name, code))
	}
	t.Fatalf("the provider asks again and again at %s", address)
	return ""
}

// fill returns what a form sends when somebody fills it in.
func fill(form, name, code string) url.Values {
	values := url.Values{}
	for _, tag := range inputTag.FindAllString(form, -1) {
		var field, value string
		for _, a := range attribute.FindAllStringSubmatch(tag, -1) {
			if strings.EqualFold(a[1], "name") {
				field = html.UnescapeString(a[2])
			} else {
				value = html.UnescapeString(a[2])
			}
		}
		switch field {
		case "":
			continue
		case "abort":
			continue // the other button
		case "login":
			value = name
		case "password":
			value = "any"
		case "user_code":
			if code != "" {
				value = code
			}
		}
		values.Set(field, value)
	}
	return values
}
