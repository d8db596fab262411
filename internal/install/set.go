package install

import (
	"fmt"
	"strconv"
	"strings"
)

// Bounds of an expression, so that a[999999999]=x asks for no memory.
const (
	maxSet   = 1 << 20 // bytes
	maxIndex = 1 << 10
	maxSteps = 30
)

// step is one step of a path: a key, or an index of a list if the key is empty.
type step struct {
	key   string
	index int
}

// assignment is one value of an expression; a list if it stood in braces.
type assignment struct {
	path   []step
	text   string
	list   []string
	listed bool
}

func (a assignment) value(read func(string) any) any {
	if !a.listed {
		return read(a.text)
	}
	values := make([]any, len(a.list))
	for i, text := range a.list {
		values[i] = read(text)
	}
	return values
}

// setReader reads an expression.
type setReader struct {
	text string
	pos  int
}

// parseSet reads an expression of --set.
func parseSet(text string) ([]assignment, error) {
	if len(text) > maxSet {
		return nil, fmt.Errorf("%d bytes; at most %d are allowed: use a file of values", len(text), maxSet)
	}
	r := &setReader{text: text}
	var all []assignment
	for r.pos < len(r.text) {
		path, err := r.path()
		if err != nil {
			return nil, err
		}
		a := assignment{path: path}
		if a.listed = strings.HasPrefix(r.text[r.pos:], "{"); a.listed {
			if a.list, err = r.braces(); err != nil {
				return nil, err
			}
		} else {
			a.text, _ = r.until(",")
		}
		all = append(all, a)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%q: want KEY=VALUE", text)
	}
	return all, nil
}

// until reads up to one of the characters, which it passes and returns; 0 at the end. A backslash
// takes the meaning from the character that follows.
func (r *setReader) until(ends string) (text string, end byte) {
	var b strings.Builder
	for r.pos < len(r.text) {
		c := r.text[r.pos]
		r.pos++
		switch {
		case c == '\\' && r.pos < len(r.text):
			b.WriteByte(r.text[r.pos])
			r.pos++
		case strings.IndexByte(ends, c) >= 0:
			return b.String(), c
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), 0
}

// path reads up to the = of an assignment.
func (r *setReader) path() ([]step, error) {
	start := r.pos
	bad := func(why string) error { return fmt.Errorf("%q: %s", r.text[start:], why) }
	var steps []step
	afterIndex := false
	for {
		key, end := r.until(".[=")
		switch {
		case key != "":
			if afterIndex {
				return nil, bad("want a dot between ] and a key")
			}
			steps = append(steps, step{key: key})
		case !afterIndex:
			return nil, bad("a key is empty")
		}
		afterIndex = false
		if len(steps) > maxSteps {
			return nil, bad("too many keys below each other")
		}
		switch end {
		case '=':
			return steps, nil
		case '[':
			text, closed := r.until("]")
			index, err := strconv.Atoi(text)
			if closed == 0 || err != nil || index < 0 || index > maxIndex {
				return nil, bad("want [INDEX], a whole number of at most " + strconv.Itoa(maxIndex))
			}
			steps = append(steps, step{index: index})
			afterIndex = true
		case 0:
			return nil, bad("want KEY=VALUE")
		}
		if afterIndex && strings.HasPrefix(r.text[r.pos:], ".") {
			r.pos++
			afterIndex = false
		}
	}
}

// braces reads a list, and the comma behind it.
func (r *setReader) braces() ([]string, error) {
	start := r.pos
	r.pos++
	list := []string{}
	for {
		text, end := r.until(",}")
		switch {
		case end == 0:
			return nil, fmt.Errorf("%q: the list has no closing brace", r.text[start:])
		case text != "" || end == ',' || len(list) > 0:
			list = append(list, text)
		}
		if end == '}' {
			break
		}
	}
	if r.pos < len(r.text) && r.text[r.pos] != ',' {
		return nil, fmt.Errorf("%q: want a comma after the list", r.text[start:])
	}
	r.pos++
	return list, nil
}
