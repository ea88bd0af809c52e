package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"regexp"
	"strconv"
	"strings"
)

// structType is one struct of the fleet file, of the chart's values or of a custom resource.
type structType struct {
	name   string
	doc    string
	fields []field
}

// field is one field of a struct, with what its comment says.
type field struct {
	name     string // as in the file
	typ      string // string, bool, int, float64, any, Object, Duration, Size, Role, Range, PortRange, or a struct's name
	list     bool   // of typ
	mapping  bool   // of text to typ
	number   bool   // text that may be written as a whole number
	doc      string // without what the members below hold, but for bounds
	fallback string // the default: a literal as in the file
	derived  string // the default in words
	fixed    string // the only value
	oneOf    []string
	low      string // bounds of a value or of a list's length, empty for none
	high     string
	required bool
}

// readTypes reads the structs of Go files. Every field needs a comment and a yaml name.
func readTypes(sources ...string) (map[string]structType, error) {
	types := map[string]structType{}
	for _, source := range sources {
		file, err := parser.ParseFile(token.NewFileSet(), source, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		if err := readFile(file, types); err != nil {
			return nil, err
		}
	}
	return types, nil
}

func readFile(file *ast.File, types map[string]structType) error {
	for _, decl := range file.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range gen.Specs {
			spec, ok := spec.(*ast.TypeSpec)
			if !ok {
				continue
			}
			s, ok := spec.Type.(*ast.StructType)
			if !ok {
				continue
			}
			t := structType{name: spec.Name.Name, doc: text(gen.Doc)}
			for _, f := range s.Fields.List {
				if len(f.Names) != 1 {
					return fmt.Errorf("%s: want one name for each field", spec.Name.Name)
				}
				parsed, err := readField(f)
				if err != nil {
					return fmt.Errorf("%s.%s: %w", spec.Name.Name, f.Names[0].Name, err)
				}
				t.fields = append(t.fields, parsed)
			}
			types[spec.Name.Name] = t
		}
	}
	return nil
}

func readField(f *ast.Field) (field, error) {
	var out field
	if f.Doc == nil || f.Tag == nil {
		return out, fmt.Errorf("want a comment and a yaml tag")
	}
	tag, err := strconv.Unquote(f.Tag.Value)
	if err != nil {
		return out, err
	}
	out.name, out.number = reflect.StructTag(tag).Get("yaml"), reflect.StructTag(tag).Get("takes") == "numbers"
	expr := f.Type
	switch t := expr.(type) {
	case *ast.StarExpr:
		expr = t.X
	case *ast.ArrayType:
		expr, out.list = t.Elt, true
	case *ast.MapType:
		expr, out.mapping = t.Value, true
	}
	switch t := expr.(type) {
	case *ast.Ident:
		out.typ = t.Name
	case *ast.SelectorExpr: // mobula.Model
		out.typ = t.Sel.Name
	default:
		return out, fmt.Errorf("unknown type %T", t)
	}
	return out, out.readComment(text(f.Doc))
}

// readComment takes the sentences that say something to a program out of a comment.
func (f *field) readComment(comment string) error {
	cut := func(pattern string) string {
		m := regexp.MustCompile(`(?:^| )` + pattern + `(?: |$)`).FindStringSubmatchIndex(comment)
		if m == nil {
			return ""
		}
		found := comment[m[2]:m[3]]
		comment = strings.TrimSpace(comment[:m[0]] + " " + comment[m[1]:])
		return found
	}
	f.required = cut(`(Required)\.`) != ""
	f.fixed = cut(`Always (\S+)\.`)
	f.derived = cut(`Default: ((?:[^.]|\.[^ ])+)\.`)
	if m := cut(`Default (\S+(?: \([^)]*\))?)\.`); m != "" {
		f.fallback, f.derived, _ = strings.Cut(m, " ")
	}
	if strings.Contains(comment, "Default") {
		return fmt.Errorf("not understood: %q", comment)
	}
	f.doc = comment // bounds and choices stay in the text
	if m := regexp.MustCompile(`(?:^| )One of ([^.]+)\.`).FindStringSubmatch(comment); m != nil {
		f.oneOf = strings.Split(strings.ReplaceAll(m[1], " or ", ", "), ", ")
	}
	if m := regexp.MustCompile(`(?:^| )([\d.]+[a-zA-Z]*) to ([\d.]+[a-zA-Z]*)\.(?: |$)`).FindStringSubmatch(comment); m != nil {
		f.low, f.high = m[1], m[2]
	} else if m := regexp.MustCompile(`(?:^| )At least (\d+)\.`).FindStringSubmatch(comment); m != nil {
		f.low = m[1]
	}
	return nil
}

// text gives a comment's first paragraph in one line.
func text(c *ast.CommentGroup) string {
	first, _, _ := strings.Cut(c.Text(), "\n\n")
	return strings.Join(strings.Fields(first), " ")
}
