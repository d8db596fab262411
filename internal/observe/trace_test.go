package observe

import (
	"errors"
	"testing"

	"postern.dev/postern/internal/wire"
)

func TestTrace(t *testing.T) {
	const text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	trace, err := ParseTrace(text)
	if err != nil || trace.String() != text || trace.Flags != 1 {
		t.Errorf("%v, %v", trace, err)
	}
	if len(trace.Bytes()) != wire.TraceLen || TraceOf(trace.Bytes()) != trace {
		t.Errorf("%x", trace.Bytes())
	}
	child := trace.Child()
	if child.TraceID != trace.TraceID || child.SpanID == trace.SpanID || child.Flags != 1 {
		t.Errorf("child %v", child)
	}
	if n := NewTrace(); !n.Valid() || n.Flags != 0 {
		t.Errorf("new %v", n)
	}
	if (Trace{}).String() != "" || (Trace{}).Bytes() != nil || TraceOf([]byte{1}).Valid() {
		t.Error("no trace is a trace")
	}
	if later, err := ParseTrace("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more"); err != nil || later != trace {
		t.Errorf("later version: %v, %v", later, err)
	}
	for _, bad := range []string{
		"", "00", text + "-more", "ff" + text[2:], "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"00-00000000000000000000000000000000-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
		"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
	} {
		if _, err := ParseTrace(bad); !errors.Is(err, ErrTrace) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzTrace(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Add("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more")
	f.Fuzz(func(t *testing.T, s string) {
		trace, err := ParseTrace(s)
		if err != nil {
			return
		}
		if again, err := ParseTrace(trace.String()); err != nil || again != trace {
			t.Fatalf("%q: %v, %v", s, trace, again)
		}
	})
}
