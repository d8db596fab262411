package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/api"
)

func TestAgentTables(t *testing.T) {
	now := time.Now()
	agents := []api.Agent{
		{ID: "office", Organization: "acme", State: api.StateReady, Replicas: []api.Replica{
			{Agent: "office", Name: "r1", State: api.StateReady, Since: now.Add(-90 * time.Second), Version: "v1", Zone: "east",
				Address: "192.0.2.7", RTTMillis: 12.345, Streams: 3, Gateway: true, Pipes: 5, BytesIn: 2048, BytesOut: 5 << 30},
			{Agent: "office", Name: "r2", State: api.StateLost, Since: now.Add(-3 * time.Hour), Version: "v2",
				LastError: "relay: \x1b[2Jgone", LastErrorAt: now.Add(-49 * time.Hour)},
		}},
		{ID: "plant", State: api.StateStopped},
	}
	var status, list bytes.Buffer
	if err := formatTable.print(&status, agents, func(r *rows) { statusTable(r, agents) }); err != nil {
		t.Fatal(err)
	}
	want := `AGENT    REPLICA   STATE   SINCE    VERSION   ZONE   ADDRESS     RTT       STREAMS   PIPES   IN        OUT       POLICY   LAST ERROR
office   r1        ready   1m ago   v1        east   192.0.2.7   12.3 ms   3         5       2.0 KiB   5.0 GiB   -        -
office   r2        lost    3h ago   v2        -      -           -         0         0       0 B       0 B       -        2d ago: relay: \x1b[2Jgone
`
	if diff := cmp.Diff(want, status.String()); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if err := formatTable.print(&list, agents, func(r *rows) {
		for _, a := range agents {
			r.row(agentCells(a)...)
		}
	}); err != nil {
		t.Fatal(err)
	}
	want = `office   ready     1/2   mixed   3   yes   -   2d ago: relay: \x1b[2Jgone
plant    stopped   0/0   -       0   -     -   -
`
	if diff := cmp.Diff(want, list.String()); diff != "" {
		t.Errorf("agents (-want +got):\n%s", diff)
	}
}

func TestFormats(t *testing.T) {
	robots := []api.Robot{{Organization: "acme", Name: "ci", Description: "yes: no"}}
	for f, want := range map[format]string{
		formatJSON: "[\n  {\n    \"organization\": \"acme\",\n    \"name\": \"ci\",\n    \"description\": \"yes: no\"\n  }\n]\n",
		formatYAML: "- organization: acme\n  name: ci\n  description: 'yes: no'\n",
	} {
		var out bytes.Buffer
		if err := f.print(&out, robots, nil); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", f, diff)
		}
	}
	var f format
	if err := f.Set("xml"); err == nil || !strings.Contains(err.Error(), "yaml") {
		t.Errorf("xml: %v", err)
	}
	var out bytes.Buffer
	if err := formatJSON.print(&out, nonNil[api.Robot](nil), nil); err != nil || out.String() != "[]\n" {
		t.Errorf("no robots: %q, %v", out.String(), err)
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1<<20 - 1: "1023.9 KiB", 1 << 62: "4.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}
