package install

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

// schema is what values have to look like.
type schema struct{ compiled *jsonschema.Schema }

func newSchema(text []byte) (*schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	const name = "values.schema.json"
	compiler := jsonschema.NewCompiler()
	compiler.UseLoader(nothing{})
	if err := compiler.AddResource(name, doc); err != nil {
		return nil, err
	}
	compiled, err := compiler.Compile(name)
	if err != nil {
		return nil, err
	}
	return &schema{compiled}, nil
}

// nothing loads no other schema: rendering reads no file and no network.
type nothing struct{}

// Load implements jsonschema.URLLoader.
func (nothing) Load(url string) (any, error) {
	return nil, fmt.Errorf("the schema refers to another one, %s", url)
}

// check returns a *RefusedError that names each value that is not as it should be.
func (s *schema) check(values map[string]any) error {
	err := s.compiled.Validate(values)
	if err == nil {
		return nil
	}
	found, ok := errors.AsType[*jsonschema.ValidationError](err)
	if !ok {
		return fmt.Errorf("check values: %w", err)
	}
	printer := message.NewPrinter(language.English)
	var problems []string
	var walk func(e *jsonschema.ValidationError)
	walk = func(e *jsonschema.ValidationError) {
		for _, cause := range e.Causes {
			walk(cause)
		}
		if len(e.Causes) > 0 {
			return
		}
		where := "values"
		if len(e.InstanceLocation) > 0 {
			where = strings.Join(e.InstanceLocation, ".")
		}
		problems = append(problems, where+": "+e.ErrorKind.LocalizedString(printer))
	}
	walk(found)
	slices.Sort(problems)
	return &RefusedError{Problems: slices.Compact(problems)}
}

// RefusedError tells that values are not as the chart wants them. Problems are for people, and
// say what to do.
type RefusedError struct{ Problems []string }

// Error implements error.
func (e *RefusedError) Error() string { return strings.Join(e.Problems, "\n") }
