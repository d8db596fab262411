package install

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSet(t *testing.T) {
	type table = map[string]any
	tests := []struct {
		set  string
		want table
	}{
		{"a=b", table{"a": "b"}},
		{"a.b.c=d", table{"a": table{"b": table{"c": "d"}}}},
		{"a=1,b=true,c=null,d=0,e=007,f=1.5,g=-3,h=", table{"a": int64(1), "b": true, "c": nil, "d": int64(0), "e": "007", "f": "1.5", "g": int64(-3), "h": ""}},
		{"a[1].b=x", table{"a": []any{nil, table{"b": "x"}}}},
		{"a[0]=x,a[1]=y", table{"a": []any{"x", "y"}}},
		{"a[0][1]=x", table{"a": []any{[]any{nil, "x"}}}},
		{"a={x,1,true}", table{"a": []any{"x", int64(1), true}}},
		{"a={},b=c", table{"a": []any{}, "b": "c"}},
		{`a\.b=c\,d`, table{"a.b": "c,d"}},
		{"a=b=c", table{"a": "b=c"}},
		{"agent.allow[0]=tcp:*.svc:443,agent.allow[1]=kubernetes", table{"agent": table{"allow": []any{"tcp:*.svc:443", "kubernetes"}}}},
		{"a=tcp:[2001:db8::/32]:*", table{"a": "tcp:[2001:db8::/32]:*"}},
	}
	for _, tt := range tests {
		var v Values
		if err := v.Set(tt.set); err != nil {
			t.Errorf("%s: %v", tt.set, err)
			continue
		}
		if diff := cmp.Diff(tt.want, v.given); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.set, diff)
		}
	}
}

func TestSetRefusals(t *testing.T) {
	for set, want := range map[string]string{
		"":                               "KEY=VALUE",
		"a":                              "KEY=VALUE",
		"a.b":                            "KEY=VALUE",
		"=b":                             "a key is empty",
		".a=b":                           "a key is empty",
		"a..b=c":                         "a key is empty",
		"a[x]=b":                         "whole number",
		"a[-1]=b":                        "whole number",
		"a[99999999]=b":                  "whole number",
		"a[0=b":                          "whole number",
		"a[0]b=c":                        "a dot between",
		"a={b":                           "closing brace",
		"a={b}c":                         "comma after the list",
		"a=1,b":                          "KEY=VALUE",
		"[0]=a":                          "a key is empty",
		strings.Repeat("a.", 40) + "b=c": "too many keys",
	} {
		var v Values
		if err := v.Set(set); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error with %q", set, err, want)
		}
	}
}

// TestLaterWins sets values in the order in which a person gives them, over others.
func TestLaterWins(t *testing.T) {
	var v Values
	for _, err := range []error{
		v.AddFile([]byte("a: {x: 1, w: 2}\nl: [1, 2]\n")),
		v.AddFile([]byte("a: {w: 3}\nl: [4]\n")),
		v.SetString("a.z=5"),
		v.Set("l[1]=6"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	v.Put("seven", "b", "c")
	want := map[string]any{
		"a": map[string]any{"x": 1.0, "w": 3.0, "z": "5"}, "l": []any{4.0, int64(6)}, "b": map[string]any{"c": "seven"},
	}
	if diff := cmp.Diff(want, v.given); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, bad := range []string{"- a", "a: 1\na: 2\n", "{", "? [a]\n: b\n"} {
		if err := v.AddFile([]byte(bad)); err == nil {
			t.Errorf("%q was taken for values", bad)
		}
	}
}

func TestOverDefaults(t *testing.T) {
	type table = map[string]any
	defaults := table{"a": table{"b": 1.0, "c": nil}, "d": "e", "n": nil}
	tests := []struct {
		given, want table
		problem     string
	}{
		{given: nil, want: table{"a": table{"b": 1.0}, "d": "e"}},
		{given: table{"a": table{"b": nil, "x": "y"}}, want: table{"a": table{"x": "y"}, "d": "e"}},
		{given: table{"d": nil, "z": 1.0}, want: table{"a": table{"b": 1.0}, "z": 1.0}},
		{given: table{"a": "text"}, problem: "such as a.b"},
	}
	for _, tt := range tests {
		got, err := overDefaults(defaults, tt.given)
		if tt.problem != "" {
			if err == nil || !strings.Contains(err.Error(), tt.problem) {
				t.Errorf("%v: %v, want an error with %q", tt.given, err, tt.problem)
			}
			continue
		}
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("%v: %v (-want +got):\n%s", tt.given, err, diff)
		}
	}
	if diff := cmp.Diff(table{"a": table{"b": 1.0, "c": nil}, "d": "e", "n": nil}, defaults); diff != "" {
		t.Errorf("the chart's own values changed (-want +got):\n%s", diff)
	}
}

// FuzzSet looks for expressions that make the reader panic or ask for much memory.
func FuzzSet(f *testing.F) {
	for _, seed := range []string{"a=b", "a.b[0]={c,d},e=f", `a\=b=c`, "a[0][0][0]=x", "{", "a={", "[", "a[1024]=b", "a={b,},c=d"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var v Values
		if err := v.Set(text); err != nil {
			return
		}
		if len(v.given) == 0 {
			t.Errorf("%q set nothing", text)
		}
	})
}
