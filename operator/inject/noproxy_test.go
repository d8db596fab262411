package inject

import (
	"os"
	"strings"
	"testing"
)

// TestNoProxyOfPrograms holds the value that test/e2e gives to real programs to what pods get.
func TestNoProxyOfPrograms(t *testing.T) {
	want, err := os.ReadFile("testdata/no-proxy.txt")
	if err != nil {
		t.Fatal(err)
	}
	got := noProxy([]string{"127.0.0.2", "127.0.0.2"}, []string{"intern.example.org", ".corp.example.org", "*.wild.example.org", "10.1.0.0/16"})
	if got != strings.TrimSpace(string(want)) {
		t.Errorf("NO_PROXY is %s\nwant %s", got, want)
	}
}
