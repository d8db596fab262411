package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestBillIsComplete compares the bill of this test's own program with what the
// toolchain tells of it.
func TestBillIsComplete(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var text, again bytes.Buffer
	if err := write(&text, self); err != nil {
		t.Fatal(err)
	}
	if err := write(&again, self); err != nil || !bytes.Equal(text.Bytes(), again.Bytes()) {
		t.Errorf("it is another the second time: %v", err)
	}
	var doc document
	if err := json.Unmarshal(text.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(doc.Serial) {
		t.Errorf("serial number %s", doc.Serial)
	}
	listed := map[string]bool{}
	for _, c := range doc.Components {
		listed[c.Name+" "+c.Version] = true
	}
	out, err := exec.CommandContext(t.Context(), "go", "version", "-m", self).Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) >= 3 && f[0] == "dep" && !listed[f[1]+" "+f[2]] {
			t.Errorf("%s is missing", f[1])
		}
	}
	if !listed["stdlib "+strings.TrimPrefix(strings.Fields(string(out))[1], "go")] {
		t.Errorf("the standard library is missing: %v", listed)
	}
}

func TestBillOfNoProgram(t *testing.T) {
	if err := write(&bytes.Buffer{}, "main.go"); err == nil {
		t.Error("a source file has a bill")
	}
}
