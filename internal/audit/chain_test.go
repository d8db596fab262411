package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"postern.dev/postern/internal/identity"
)

func newSigner(t interface{ Fatal(...any) }) *Signer {
	key, err := NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func publicKey(t interface{ Fatal(...any) }, s *Signer) []byte {
	text, err := s.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// full has every field set.
func full() Entry {
	at := time.Date(2026, 3, 1, 12, 0, 0, 5000, time.UTC)
	return Entry{
		Record: Record{
			ID: "id-1", Time: at, Received: at.Add(time.Minute), Organization: "acme", Reporter: ByAgent, Action: Open,
			Actor:   identity.Principal{Kind: identity.KindUser, Name: "ann@example.org"},
			Through: "spiffe://t/org/acme/proxy/p/1", User: "ann@example.org", Status: 200, Source: "192.0.2.1", Agent: "edge", Replica: "one", Target: "tcp:db:5432",
			Address: "10.0.0.1:5432", Object: "robot:ci", What: "create", OK: true, Code: "denied", Reason: "a \"rule\" of\nDüsseldorf \\ \x01",
			BytesIn: 1 << 60, BytesOut: 2, Duration: time.Second, Stream: "00ff", Trace: "aa", Count: 7,
		},
		Sequence: 3, Previous: firstPrevious(), Hash: "h", Key: "k", Signature: "s",
	}
}

// TestEncoderKnowsEveryField compares the encoder, which is written by hand, with
// what the struct says.
func TestEncoderKnowsEveryField(t *testing.T) {
	e := full()
	line := appendRecord(nil, &e.Record, &e)
	var got Entry
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	got.Hash = e.Hash
	if diff := cmp.Diff(e, got); diff != "" {
		t.Error(diff)
	}
	for _, v := range []reflect.Value{reflect.ValueOf(e), reflect.ValueOf(e.Record)} {
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Errorf("%s is not tested", v.Type().Field(i).Name)
			}
		}
	}
	all, err := parseLine(line)
	if err != nil {
		t.Fatal(err)
	}
	if again := canonical(all, "hash"); !bytes.Equal(again, line) {
		t.Errorf("the canonical form of\n%s is\n%s", line, again)
	}
	// Whoever writes it down otherwise says the same.
	var loose bytes.Buffer
	if err := json.Indent(&loose, line, "", "  "); err != nil {
		t.Fatal(err)
	}
	if all, err = parseLine(loose.Bytes()); err != nil || !bytes.Equal(canonical(all, "hash"), line) {
		t.Errorf("another way to write it has another canonical form: %v", err)
	}
}

func TestHashIsStable(t *testing.T) {
	e := full()
	e.User, e.Status = "", 0 // came later
	line, head := Head{2, strings.Repeat("ab", 32)}.Seal(nil, &e.Record)
	const want = "bb31ca2d62de43392b7c0f427335ebddea0510f094084584b237017a52fe6279"
	if head.Hash != want {
		t.Errorf("the hash of\n%s\nis %s and was %s: chains that were written before cannot be verified", line, head.Hash, want)
	}
}

// drawChain draws a chain with checkpoints, and returns its lines.
func drawChain(t *rapid.T, s *Signer) (lines [][]byte, head Head) {
	n := rapid.IntRange(2, 30).Draw(t, "records")
	for i := range n {
		r := Record{
			ID: fmt.Sprint(i), Time: time.Unix(int64(i), 0), Organization: "acme", Reporter: ByHub, Action: rapid.SampledFrom(Actions()).Draw(t, "action"),
			Target: rapid.String().Draw(t, "target"), OK: rapid.Bool().Draw(t, "ok"), BytesIn: rapid.Uint64().Draw(t, "bytes"),
		}
		if r.Action == Checkpoint {
			r.Action = Open
		}
		r.clean()
		var line []byte
		if i > 0 && rapid.IntRange(0, 4).Draw(t, "sign") == 0 {
			line, head = s.checkpoint(head, nil, &r)
		} else {
			line, head = head.Seal(nil, &r)
		}
		lines = append(lines, line)
	}
	return lines, head
}

func verify(lines [][]byte, v *Verifier) (Report, error) {
	for _, line := range lines {
		if err := v.Add(line); err != nil {
			return Report{}, err
		}
	}
	return v.Finish()
}

func TestVerifierDetectsEveryChange(t *testing.T) {
	signer, other := newSigner(t), newSigner(t)
	key, err := ParsePublicKey(publicKey(t, signer))
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		lines, head := drawChain(t, signer)
		report, err := verify(lines, &Verifier{Key: key, Known: []Head{head}})
		if err != nil {
			t.Fatalf("a good chain is refused: %v\n%s", err, bytes.Join(lines, []byte("\n")))
		}
		if report.First != 1 || report.Last != uint64(len(lines)) || report.Head != head {
			t.Fatalf("report %+v", report)
		}
		// What was kept too long is gone, and that is fine.
		if _, err := verify(lines[1:], &Verifier{Key: key, Known: []Head{head}}); err != nil {
			t.Fatalf("without its oldest record: %v", err)
		}

		bad := slices.Clone(lines)
		i := rapid.IntRange(0, len(lines)-1).Draw(t, "at")
		switch kind := rapid.SampledFrom([]string{"byte", "member", "remove", "swap", "insert", "cut", "forge"}).Draw(t, "kind"); kind {
		case "byte":
			bad[i] = bytes.Clone(lines[i])
			at := rapid.IntRange(0, len(bad[i])-1).Draw(t, "byte")
			bad[i][at] ^= byte(rapid.IntRange(1, 255).Draw(t, "xor"))
			before, _ := parseLine(lines[i])
			if after, err := parseLine(bad[i]); err == nil && cmp.Equal(before, after, cmp.AllowUnexported(member{})) {
				return // another way to write the same
			}
		case "member":
			bad[i] = bytes.Replace(lines[i], []byte(`{"action"`), []byte(`{"added":1,"action"`), 1)
		case "remove":
			if i == 0 {
				return
			}
			bad = slices.Delete(bad, i, i+1)
		case "swap":
			if i == 0 {
				return
			}
			bad[i-1], bad[i] = bad[i], bad[i-1]
		case "insert":
			var e Entry
			e.Record = Record{ID: "new", Time: time.Unix(int64(i), 0), Organization: "acme", Reporter: ByHub, Action: Open}
			line, _ := Head{uint64(i), strings.Repeat("0", 64)}.Seal(nil, &e.Record)
			bad = slices.Insert(bad, i, line)
		case "cut":
			bad = bad[:i]
		case "forge": // the whole chain anew, by somebody without the key
			var h Head
			for n := range bad {
				e, err := ParseEntry(bad[n])
				if err != nil {
					t.Fatal(err)
				}
				e.Target += "x"
				if e.Action == Checkpoint {
					bad[n], h = other.checkpoint(h, nil, &e.Record)
				} else {
					bad[n], h = h.Seal(nil, &e.Record)
				}
			}
		}
		if _, err := verify(bad, &Verifier{Key: key, Known: []Head{head}}); err == nil {
			t.Fatalf("not detected:\n%s", bytes.Join(bad, []byte("\n")))
		} else if _, ok := errors.AsType[*Broken](err); !ok {
			t.Fatalf("error %T", err)
		}
	})
}

func TestVerifierSaysWhereAndWhy(t *testing.T) {
	signer := newSigner(t)
	key, _ := ParsePublicKey(publicKey(t, signer))
	var lines [][]byte
	var head Head
	for i := range 5 {
		r := Record{ID: fmt.Sprint(i), Organization: "acme", Reporter: ByHub, Action: Open, Target: "tcp:db:5432"}
		var line []byte
		line, head = head.Seal(nil, &r)
		lines = append(lines, line)
	}
	line, end := signer.checkpoint(head, nil, &Record{Organization: "acme"})
	lines = append(lines, line)
	for _, c := range []struct {
		name string
		make func() [][]byte
		want string
	}{
		{"changed", func() [][]byte {
			all := slices.Clone(lines)
			all[2] = bytes.Replace(all[2], []byte("db"), []byte("no"), 1)
			return all
		}, "the log of acme, record 3 (line 3): it is not as it was written"},
		{"removed", func() [][]byte { return slices.Delete(slices.Clone(lines), 2, 3) }, "record 3 (line 3): it is missing"},
		{"cut", func() [][]byte { return lines[:3] }, "the chain ends before record 6"},
		{"moved", func() [][]byte {
			return slices.Insert(slices.Clone(lines), 4, func() []byte { l, _ := Head{1, "x"}.Seal(nil, &Record{Organization: "acme"}); return l }())
		},
			"it comes after record 4"},
		{"of another", func() [][]byte {
			l, _ := Head{1, "x"}.Seal(nil, &Record{Organization: "other"})
			return [][]byte{lines[0], l}
		}, "it is of another organization"},
		{"anew", func() [][]byte {
			all := slices.Clone(lines)
			h := Head{1, hashOf(nil)}
			for i := 1; i < len(all); i++ {
				all[i], h = h.Seal(nil, &Record{Organization: "acme"})
			}
			return all
		}, "it does not follow the record before it"},
		{"a signature of another chain", func() [][]byte {
			all := slices.Clone(lines)
			l, _ := signer.checkpoint(Head{5, hashOf(nil)}, nil, &Record{Organization: "acme"})
			e, _ := ParseEntry(l)
			e.Previous = head.Hash
			l, _ = head.seal(nil, &e.Record, &e)
			all[5] = l
			return all
		}, "signature is not the hub's"},
	} {
		v := &Verifier{Key: key, Known: []Head{end}}
		if c.name == "a signature of another chain" {
			v.Known = nil
		}
		_, err := verify(c.make(), v)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
	// Somebody without the key leaves the checkpoints out.
	v := &Verifier{Key: key}
	h := Head{}
	for range maxUnsigned + 1 {
		var line []byte
		line, h = h.Seal(nil, &Record{Organization: "acme"})
		if err := v.Add(line); err != nil {
			if !strings.Contains(err.Error(), "no checkpoint") {
				t.Fatal(err)
			}
			return
		}
	}
	t.Error("a chain without checkpoints is taken for good")
}

func TestVerifyAllReadsExports(t *testing.T) {
	var file bytes.Buffer
	heads := map[string]Head{}
	var last []byte
	for i := range 20 {
		org := []string{"a", "b", ""}[i%3]
		last, heads[org] = heads[org].Seal(nil, &Record{Organization: org, ID: fmt.Sprint(i)})
		file.Write(append(last, '\n'))
	}
	file.Write(append(last, '\n')) // given twice, as may happen
	file.WriteString("\n")
	reports, err := VerifyAll(bytes.NewReader(file.Bytes()), nil)
	if err != nil || len(reports) != 3 || reports[0].Organization != "" || reports[1].Head != heads["a"] || reports[2].Last != 7 {
		t.Errorf("%+v, %v", reports, err)
	}
	if reports[2].Repeated+reports[1].Repeated+reports[0].Repeated != 1 {
		t.Errorf("repeated lines: %+v", reports)
	}
	lines := bytes.SplitAfter(file.Bytes(), []byte("\n"))
	if _, err := VerifyAll(bytes.NewReader(bytes.Join(slices.Delete(lines, 7, 8), nil)), nil); err == nil {
		t.Error("a missing line is not noticed")
	}
	if _, err := VerifyAll(strings.NewReader(strings.Repeat("x", MaxLine+2)), nil); err == nil {
		t.Error("a line without end is read")
	}
}

func FuzzParseEntry(f *testing.F) {
	e := full()
	line, _ := Head{}.Seal(nil, &e.Record)
	f.Add(line)
	f.Add([]byte(`{"a":1,"a":2}`))
	f.Add([]byte(`{"seq":1e3}`))
	f.Add([]byte(`{"x":{"y":[]}}`))
	f.Add([]byte(`{"time":"not"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		all, err := parseLine(line)
		if err != nil {
			if !errors.Is(err, ErrLine) {
				t.Fatal(err)
			}
			return
		}
		text := canonical(all, "")
		again, err := parseLine(text)
		if err != nil || !bytes.Equal(canonical(again, ""), text) {
			t.Fatalf("%q has the canonical form %q, which has another: %v", line, text, err)
		}
		_, _ = ParseEntry(line)
		_ = (&Verifier{}).Add(line)
	})
}

// TestGuideKnowsEveryField compares the guide's table with the struct.
func TestGuideKnowsEveryField(t *testing.T) {
	guide, err := os.ReadFile("../../docs/guide/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	table, _, _ := strings.Cut(string(guide[bytes.Index(guide, []byte("## A record")):]), "\n\nA stream")
	for _, typ := range []reflect.Type{reflect.TypeFor[Entry](), reflect.TypeFor[Record]()} {
		for field := range typ.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if name != "" && !strings.Contains(table, "`"+name+"`") {
				t.Errorf("the guide does not tell of %q", name)
			}
		}
	}
	for _, a := range Actions() {
		if !strings.Contains(table, "`"+string(a)+"`") {
			t.Errorf("the guide does not tell of the action %q", a)
		}
	}
}
