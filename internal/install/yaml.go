package install

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"

	"go.yaml.in/yaml/v2"
)

// The second version of the YAML library is used here and nowhere else: Helm uses it, and only it
// writes the same line breaks and quotes.

// unmarshalInto reads YAML into a struct.
func unmarshalInto(text []byte, into any) error { return yaml.Unmarshal(text, into) }

// parseYAML reads YAML as JSON has it: maps of texts, float64 for every number. A key that stands
// twice is an error.
func parseYAML(text []byte) (any, error) {
	var v any
	if err := yaml.UnmarshalStrict(text, &v); err != nil {
		return nil, err
	}
	return jsonValue(v)
}

// parseValues reads a file of values. An empty one has none.
func parseValues(text []byte) (map[string]any, error) {
	v, err := parseYAML(text)
	if err != nil {
		return nil, err
	}
	switch v := v.(type) {
	case nil:
		return map[string]any{}, nil
	case map[string]any:
		return v, nil
	default:
		return nil, fmt.Errorf("want keys with values, and there is %T", v)
	}
}

// jsonValue returns what YAML was read as in the types of JSON.
func jsonValue(v any) (any, error) {
	switch v := v.(type) {
	case map[any]any:
		out := make(map[string]any, len(v))
		for key, value := range v {
			name, err := keyText(key)
			if err != nil {
				return nil, err
			}
			if out[name], err = jsonValue(value); err != nil {
				return nil, err
			}
		}
		return out, nil
	case []any:
		out := make([]any, len(v))
		for i, value := range v {
			var err error
			if out[i], err = jsonValue(value); err != nil {
				return nil, err
			}
		}
		return out, nil
	case int:
		return float64(v), nil
	case int64:
		return float64(v), nil
	case uint64:
		return float64(v), nil
	case nil, bool, string, float64:
		return v, nil
	default:
		return nil, fmt.Errorf("a value of type %T has no place among the values", v)
	}
}

func keyText(key any) (string, error) {
	switch key := key.(type) {
	case string:
		return key, nil
	case int:
		return strconv.Itoa(key), nil
	case bool:
		return strconv.FormatBool(key), nil
	default:
		return "", fmt.Errorf("the key %v is not a text", key)
	}
}

// toYAML writes a value as templates' toYaml does: by way of JSON, without the last line break.
func toYAML(v any) (string, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	// YAML reads JSON; numbers stay whole numbers that way.
	var plain any
	if err := yaml.Unmarshal(text, &plain); err != nil {
		return "", err
	}
	if text, err = yaml.Marshal(plain); err != nil {
		return "", err
	}
	return string(bytes.TrimSuffix(text, []byte("\n"))), nil
}
