package install

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig/v3"
)

// maxInclude bounds how deep templates include each other.
const maxInclude = 100

// functions are those of templates: sprig's, and Helm's own as far as charts use them. Nothing
// reads the environment, the network or the clock: a chart and its values decide what comes out.
func functions(root *template.Template) template.FuncMap {
	all := sprig.TxtFuncMap()
	for _, name := range []string{
		"env", "expandenv", "getHostByName", "now", "date", "ago", "htmlDate", "uuidv4",
		"randAlphaNum", "randAlpha", "randAscii", "randNumeric", "randBytes", "randInt", "shuffle",
		"genPrivateKey", "genCA", "genCAWithKey", "genSelfSignedCert", "genSelfSignedCertWithKey", "genSignedCert", "genSignedCertWithKey",
	} {
		delete(all, name)
	}
	depth := 0
	all["include"] = func(name string, data any) (string, error) {
		if depth++; depth > maxInclude {
			return "", fmt.Errorf("templates include each other more than %d deep", maxInclude)
		}
		defer func() { depth-- }()
		var b strings.Builder
		err := root.ExecuteTemplate(&b, name, data)
		return b.String(), err
	}
	all["tpl"] = func(text string, data any) (string, error) {
		clone, err := root.Clone()
		if err != nil {
			return "", err
		}
		if clone, err = clone.Option("missingkey=zero").New("tpl").Parse(text); err != nil {
			return "", err
		}
		var b strings.Builder
		err = clone.Execute(&b, data)
		return withoutNoValue(b.String()), err
	}
	all["required"] = func(text string, value any) (any, error) {
		if value == nil || value == "" {
			return nil, refused("%s", text)
		}
		return value, nil
	}
	all["fail"] = func(text string) (string, error) { return "", refused("%s", text) }
	all["lookup"] = func(string, string, string, string) map[string]any { return map[string]any{} }
	all["toYaml"] = toYAML
	all["toJson"] = func(v any) (string, error) {
		text, err := json.Marshal(v)
		return string(text), err
	}
	all["fromJson"] = func(text string) (m map[string]any, err error) { return m, json.Unmarshal([]byte(text), &m) }
	all["fromJsonArray"] = func(text string) (a []any, err error) { return a, json.Unmarshal([]byte(text), &a) }
	return all
}
