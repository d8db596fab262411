package workload

import (
	"encoding/json"
	"strings"
	"testing"
)

func claims(t testing.TB, text string) map[string]any {
	t.Helper()
	var c map[string]any
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	if err := dec.Decode(&c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestMatch(t *testing.T) {
	c := claims(t, `{"sub":"system:serviceaccount:postern:agent","kubernetes.io":{"namespace":"postern","serviceaccount":{"name":"agent"},"a.b":{"c":"d"}},
		"groups":["sre","dev"],"level":3,"ok":true,"repository":"acme/infra","none":null,"a":{"b":"within"},"x.y":"whole","x":{"y":"within"}}`)
	for rule, want := range map[string]bool{
		"sub=system:serviceaccount:postern:agent":  true,
		"sub=system:serviceaccount:postern:*":      true,
		"sub=system:serviceaccount:*:agent":        true,
		"sub=system:serviceaccount:*":              false, // * does not pass a ':'
		"sub=system:*":                             false,
		"sub=system:serviceaccount:postern:agen":   false,
		"sub=system:serviceaccount:postern:agent*": false, // one character at least
		"sub=system:serviceaccount:postern:age*":   true,
		"sub=System:serviceaccount:postern:agent":  false,
		"sub=s.stem:serviceaccount:postern:agent":  false,
		"kubernetes.io.namespace=postern":          true,
		"kubernetes.io.serviceaccount.name=agent":  true,
		"kubernetes.io.a.b.c=d":                    true,
		"kubernetes.io=postern":                    false,
		"groups=dev":                               true,
		"groups=d*":                                true,
		"groups=ops":                               false,
		"level=3":                                  true,
		"ok=true":                                  true,
		"repository=acme/*":                        true,
		"repository=a*":                            false,
		"none=x*":                                  false,
		"missing=x":                                false,
		"a.b=within":                               true,
		"x.y=whole":                                true, // the member of that very name
		"x.y=within":                               false,
	} {
		r, err := ParseRule(rule)
		if err != nil {
			t.Errorf("%s: %v", rule, err)
			continue
		}
		if got := r.Match(c); got != want || r.String() != rule {
			t.Errorf("%s: %v, and it prints %s", r, got, r)
		}
	}
}

func TestParseRuleRefuses(t *testing.T) {
	for _, rule := range []string{
		"", "sub", "sub=", "=x", "sub=*", "sub=*:agent", "sub=a**", "sub=a*b*c*d*e*f*g*h*i*j", strings.Repeat("a", 300) + "=x", "sub=" + strings.Repeat("a", 2000),
	} {
		if r, err := ParseRule(rule); err == nil {
			t.Errorf("%.40q is %v", rule, r)
		}
	}
	for _, rules := range [][]string{nil, {"groups=x"}, {"sub=x", "bad"}, make([]string, 17)} {
		if _, err := ParseRules(rules); err == nil {
			t.Errorf("%q pass", rules)
		}
	}
	if rules, err := ParseRules([]string{"groups=x", "sub=y"}); err != nil || len(rules) != 2 || rules[1].Claim() != "sub" {
		t.Errorf("%v, %v", rules, err)
	}
}

func TestName(t *testing.T) {
	c := claims(t, `{"kubernetes.io":{"namespace":"prod"},"owner":"Acme","slash":"a/b","long":"`+strings.Repeat("a", 63)+`","n":7}`)
	for text, want := range map[string]string{
		"office": "office", "edge-{kubernetes.io.namespace}": "edge-prod", "{kubernetes.io.namespace}": "prod", "{n}": "7",
		"{owner}": "", "{slash}": "", "{missing}": "", "x-{long}": "", "{kubernetes.io}": "",
	} {
		n, err := ParseName(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got, err := n.Of(c)
		if n.String() != text || (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("%s: %q, %v", n, got, err)
		}
		if n.Fixed() == strings.Contains(text, "{") {
			t.Errorf("%s: fixed is %v", n, n.Fixed())
		}
	}
	for _, bad := range []string{"", "Office", "*", "{}", "{a", "a}", "{a}{b}", "{{a}}", "-{a}", "{a}-", "a{b}c{d}"} {
		if n, err := ParseName(bad); err == nil {
			t.Errorf("%q is %v", bad, n)
		}
	}
}

func FuzzRule(f *testing.F) {
	f.Add("sub=a:*", `{"sub":"a:b"}`)
	f.Add("a.b.c=x*y", `{"a":{"b.c":"xzy"}}`)
	f.Fuzz(func(t *testing.T, text, payload string) {
		r, err := ParseRule(text)
		if err != nil {
			return
		}
		if again, err := ParseRule(r.String()); err != nil || again.String() != text {
			t.Fatalf("%q prints %q, %v", text, r, err)
		}
		var c map[string]any
		if json.Unmarshal([]byte(payload), &c) == nil {
			_ = r.Match(c)
		}
		// What holds a separator in the place of a star does not match.
		star := strings.Index(r.pattern, "*")
		if star > 0 && r.matches(r.pattern[:star]+":x:"+strings.ReplaceAll(r.pattern[star+1:], "*", "x")) {
			t.Fatalf("%s passes a separator", r)
		}
	})
}
