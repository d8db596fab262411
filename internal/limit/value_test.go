package limit_test

import (
	"encoding/json"
	"testing"

	"postern.dev/postern/internal/limit"
)

func TestParseValue(t *testing.T) {
	for _, tc := range []struct {
		kind limit.Kind
		text string
		want limit.Value // Unset for an error
		back string      // as it is written again
	}{
		{limit.Streams, "100", 100, "100"},
		{limit.Streams, " 1 ", 1, "1"},
		{limit.Streams, "unlimited", limit.Unlimited, "unlimited"},
		{limit.Streams, "0", limit.Unset, ""},
		{limit.Streams, "-1", limit.Unset, ""},
		{limit.Streams, "1.5", limit.Unset, ""},
		{limit.Streams, "10MB", limit.Unset, ""},
		{limit.Streams, "", limit.Unset, ""},
		{limit.Bytes, "100MB", 100e6, "100MB"},
		{limit.Bytes, "64KiB", 64 << 10, "65536"},
		{limit.Bytes, "1 GB", 1e9, "1GB"},
		{limit.Bytes, "20000B", 20000, "20kB"},
		{limit.Bytes, "16383", limit.Unset, ""},
		{limit.Bytes, "9999999999GB", limit.Unset, ""},
	} {
		got, err := limit.ParseValue(tc.kind, tc.text)
		if tc.want == limit.Unset {
			if err == nil {
				t.Errorf("%s %q: got %d, want an error", tc.kind, tc.text, got)
			}
			continue
		}
		if err != nil || got != tc.want || got.Text(tc.kind) != tc.back {
			t.Errorf("%s %q: got %d, written %q, %v", tc.kind, tc.text, got, got.Text(tc.kind), err)
		}
	}
}

func TestSettings(t *testing.T) {
	var table limit.Table
	for _, good := range []string{"organization.agents=5", "proxy.streams = 7", "agent.bytes-per-second=1MB", "proxy.streams=unlimited"} {
		if err := table.ParseSetting(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	want := limit.Table{
		limit.Organization: {Agents: 5}, limit.Agent: {Bytes: 1e6}, limit.Proxy: {Streams: limit.Unlimited},
	}
	if table != want {
		t.Errorf("got %+v", table)
	}
	for _, bad := range []string{"", "streams=1", "proxy.agents=1", "proxy.streams", "robot.streams=1", "proxy.speed=1", "proxy.streams=0"} {
		if err := table.ParseSetting(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestLimitsAsJSON(t *testing.T) {
	in := limit.Limits{Streams: 5, Bytes: limit.Unlimited}
	b, err := json.Marshal(in)
	if err != nil || string(b) != `{"streams":5,"bytesPerSecond":"unlimited"}` {
		t.Errorf("got %s, %v", b, err)
	}
	var out limit.Limits
	if err := json.Unmarshal(b, &out); err != nil || out != in {
		t.Errorf("got %+v, %v", out, err)
	}
	for _, bad := range []string{`{"streams":0}`, `{"streams":-1}`, `{"streams":"many"}`, `{"streams":1.5}`} {
		if err := json.Unmarshal([]byte(bad), &out); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
	if err := (limit.Limits{Agents: 5}).Check(limit.Proxy); err == nil {
		t.Error("a proxy got a limit of agents")
	}
	if err := (limit.Limits{Bytes: 5}).Check(limit.Organization); err == nil {
		t.Error("five bytes per second were taken")
	}
}

func TestStricterOfTwo(t *testing.T) {
	got := limit.Limits{Streams: 5, Opens: limit.Unlimited, Agents: 3}.And(limit.Limits{Streams: 7, Opens: 2, Bytes: 1 << 20, Agents: limit.Unlimited})
	if want := (limit.Limits{Streams: 5, Opens: 2, Bytes: 1 << 20, Agents: 3}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func FuzzParseSetting(f *testing.F) {
	for _, seed := range []string{"organization.agents=5", "proxy.streams=unlimited", "agent.bytes-per-second=10 MiB", "=", ".=", "proxy.streams=9223372036854775807"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var table limit.Table
		if table.ParseSetting(s) != nil {
			if table != (limit.Table{}) {
				t.Errorf("%q is wrong, and changed the table", s)
			}
			return
		}
		for level, l := range table {
			if err := l.Check(limit.Level(level)); err != nil {
				t.Errorf("%q was taken: %v", s, err)
			}
		}
	})
}
