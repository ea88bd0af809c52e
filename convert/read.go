package convert

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"sigs.k8s.io/yaml"

	"github.com/mobula-serve/mobula"
)

const (
	maxProblems = 20
	// maxValues bounds a file with its aliases followed.
	maxValues = 100_000
)

// input is the merged values. They are as encoding/json has them, with json.Number for numbers: nil, bool, string, []any,
// map[string]any.
type input struct {
	values map[string]any
	files  []string
	places map[string]place
	// problems of each file.
	problems map[string][]mobula.Problem
}

// place is where a value stands.
type place struct {
	file         string
	line, column int
}

// read gives the files merged. Helm's own parser decides what is in them; another one only tells where.
func read(files []File) (*input, error) {
	in := &input{values: map[string]any{}, places: map[string]place{}, problems: map[string][]mobula.Problem{}}
	for _, f := range files {
		in.files = append(in.files, f.Name)
		if len(f.Data) > MaxFileSize {
			return nil, fmt.Errorf("%s: %w: want at most %s", f.Name, ErrTooLarge, mobula.Size(MaxFileSize))
		}
		values, problem := decode(f.Data)
		if problem != nil {
			in.problems[f.Name] = []mobula.Problem{*problem}
			continue
		}
		merge(in.values, values)
		in.locate(f)
	}
	return in, in.failure()
}

// decode reads one file as Helm does.
func decode(data []byte) (map[string]any, *mobula.Problem) {
	text, err := yaml.YAMLToJSON(data)
	if err != nil {
		return nil, &mobula.Problem{Line: lineOf(err), Column: 1, Message: "not YAML: " + trimmed(err)}
	}
	if bytes.Count(text, []byte(","))+bytes.Count(text, []byte(":")) > 2*maxValues {
		return nil, &mobula.Problem{Line: 1, Column: 1, Message: "too long: more than " + strconv.Itoa(maxValues) + " values"}
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, &mobula.Problem{Line: 1, Column: 1, Message: "not YAML: " + trimmed(err)}
	}
	switch v := value.(type) {
	case nil:
		return map[string]any{}, nil
	case map[string]any:
		return v, nil
	}
	return nil, &mobula.Problem{Line: 1, Column: 1, Message: "want values, which are a mapping, got " + shown(value)}
}

// lineOf finds the line that a YAML error speaks of, 1 when it speaks of none.
func lineOf(err error) int {
	m := regexp.MustCompile(`\bline (\d+)`).FindStringSubmatch(err.Error())
	if m == nil {
		return 1
	}
	n, _ := strconv.Atoi(m[1])
	return max(1, n)
}

// trimmed is the parser's message in one line, without what is said anyway.
func trimmed(err error) string {
	text := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
	text = regexp.MustCompile(`^yaml: (line \d+: )?`).ReplaceAllString(text, "")
	return strings.Join(strings.Fields(text), " ")
}

// merge puts from over into, as Helm does with one -f after the other.
func merge(into, from map[string]any) {
	for key, value := range from {
		above, isMap := value.(map[string]any)
		below, both := into[key].(map[string]any)
		switch {
		case value == nil:
			delete(into, key)
		case isMap && both:
			merge(below, above)
		default:
			into[key] = value
		}
	}
}

// locate notes where the values of a file stand, as far as that can be told.
func (in *input) locate(f File) {
	defer func() { _ = recover() }() // a bug in the parser costs no more than line numbers
	parsed, err := parser.ParseBytes(f.Data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return
	}
	for _, doc := range parsed.Docs {
		if doc.Body != nil {
			in.places[""] = place{f.Name, 1, 1}
			in.locateIn(f.Name, "", doc.Body, 0)
		}
	}
}

func (in *input) locateIn(file, path string, n ast.Node, depth int) {
	if depth > 64 {
		return
	}
	switch n := n.(type) {
	case *ast.AnchorNode:
		in.locateIn(file, path, n.Value, depth+1)
	case *ast.MappingNode:
		for _, v := range n.Values {
			in.locateIn(file, path, v, depth+1)
		}
	case *ast.MappingValueNode:
		t := n.Key.GetToken()
		below := join(path, t.Value)
		in.places[below] = place{file, max(1, t.Position.Line), max(1, t.Position.Column)}
		in.locateIn(file, below, n.Value, depth+1)
	case *ast.SequenceNode:
		for i, v := range n.Values {
			below := path + "[" + strconv.Itoa(i) + "]"
			if t := v.GetToken(); t != nil && t.Position != nil {
				in.places[below] = place{file, max(1, t.Position.Line), max(1, t.Position.Column)}
			}
			in.locateIn(file, below, v, depth+1)
		}
	}
}

// bad notes what is wrong with the value at a path.
func (in *input) bad(path, format string, args ...any) {
	at, known := in.places[path]
	for above := path; !known && above != ""; at, known = in.places[above] {
		above = above[:max(0, strings.LastIndexAny(above, ".["))]
	}
	if at.file == "" {
		at = place{in.files[0], 1, 1}
	}
	if len(in.problems[at.file]) < maxProblems {
		in.problems[at.file] = append(in.problems[at.file], mobula.Problem{
			Line: at.line, Column: at.column, Field: path, Message: fmt.Sprintf(format, args...),
		})
	}
}

// failure is all that is wrong, nil if nothing is.
func (in *input) failure() error {
	var all []error
	for _, file := range in.files {
		if problems := in.problems[file]; len(problems) > 0 {
			all = append(all, &mobula.FileError{Name: file, Problems: problems, More: len(problems) == maxProblems})
			delete(in.problems, file) // a file may be given twice
		}
	}
	if len(all) == 1 {
		return all[0]
	}
	return errors.Join(all...)
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// shown is a value as a message has it.
func shown(value any) string {
	switch v := value.(type) {
	case nil:
		return "nothing"
	case map[string]any:
		return "a mapping"
	case []any:
		return "a list"
	case string:
		return strconv.Quote(clip(v))
	}
	return clip(fmt.Sprint(value))
}

// clip shortens what is shown of a value.
func clip(s string) string {
	const most = 40
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}
