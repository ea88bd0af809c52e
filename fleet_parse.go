package mobula

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds on a file's shape. The parser's time grows with the square of depth and of keys.
const (
	maxTokens = 400_000
	maxDepth  = 50
	maxKeys   = 2_000
)

const tooLong = "too long: more than 400000 words and signs"

// parse gives the one document of a fleet file.
func parse(data []byte) (root ast.Node, problem *Problem) {
	fail := func(at place, format string, args ...any) (ast.Node, *Problem) {
		return nil, &Problem{Line: at.line, Column: at.column, Message: fmt.Sprintf(format, args...)}
	}
	start := place{1, 1}
	if len(data) > MaxFileSize {
		return fail(start, "want at most %s, got more", Size(MaxFileSize))
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if at, ok := notText(data); ok {
		return fail(at, "want UTF-8 text, got other bytes")
	}
	if signs(data) > maxTokens { // a token takes the lexer some 200 bytes of memory
		return fail(start, "%s", tooLong)
	}
	// A bug in the parser must not end a router that reloads its file.
	defer func() {
		if r := recover(); r != nil {
			root, problem = fail(start, "the YAML parser fails on this file: %v", r)
		}
	}()
	tokens := lexer.Tokenize(string(data))
	if at, what := tooComplex(tokens); what != "" {
		return fail(at, "%s", what)
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var at yaml.Error
		if errors.As(err, &at) && at.GetToken() != nil {
			return fail(placeOf(at.GetToken()), "not YAML: %s", at.GetMessage())
		}
		return fail(start, "not YAML: %v", err)
	}
	for _, doc := range file.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.DirectiveType {
			continue
		}
		if root != nil {
			return fail(placeOf(keyToken(doc.Body)), "want one document, got another one")
		}
		root = doc.Body
	}
	if root == nil {
		return fail(start, "want a fleet, which begins with apiVersion: %s; got an empty file", APIVersion)
	}
	return root, nil
}

// notText finds the first byte that no UTF-8 text has.
func notText(data []byte) (at place, found bool) {
	line, column := 1, 1
	for len(data) > 0 {
		r, n := utf8.DecodeRune(data)
		switch {
		case r == utf8.RuneError && n == 1, r == 0:
			return place{line, column}, true
		case r == '\n':
			line, column = line+1, 1
		default:
			column++
		}
		data = data[n:]
	}
	return place{}, false
}

// signs counts the bytes that may be tokens by themselves.
func signs(data []byte) (n int) {
	for _, c := range data {
		if strings.IndexByte("[]{},:-?&*!|>'\"#\n", c) >= 0 {
			n++
		}
	}
	return n
}

// tooComplex finds what would keep the parser busy for long and no fleet needs. It measures
// by the columns at which blocks start, before anything is built.
func tooComplex(tokens token.Tokens) (place, string) {
	if len(tokens) > maxTokens {
		return placeOf(tokens[maxTokens]), tooLong
	}
	type block struct{ column, keys int }
	var blocks []block
	flow, line, opens := 0, 0, true
	for _, t := range tokens {
		at := placeOf(t)
		if flow == 0 && (opens || at.line != line) {
			for len(blocks) > 0 && blocks[len(blocks)-1].column > at.column {
				blocks = blocks[:len(blocks)-1]
			}
			if len(blocks) == 0 || blocks[len(blocks)-1].column < at.column {
				blocks = append(blocks, block{column: at.column})
			}
			if last := &blocks[len(blocks)-1]; t.Type != token.SequenceEntryType {
				last.keys++
				if last.keys > maxKeys {
					return at, fmt.Sprintf("too many keys in one place: more than %d", maxKeys)
				}
			}
		}
		opens, line = false, at.line
		switch t.Type {
		case token.SequenceEntryType, token.MappingKeyType:
			opens = true
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow = max(0, flow-1)
		}
		if flow+len(blocks) > maxDepth {
			return at, fmt.Sprintf("nested too deep: more than %d levels", maxDepth)
		}
	}
	return place{}, ""
}

func placeOf(t *token.Token) place {
	if t == nil || t.Position == nil {
		return place{1, 1}
	}
	return place{max(1, t.Position.Line), max(1, t.Position.Column)}
}

// keyToken gives the token at which a reader sees a node start: a block mapping's own token is its first colon.
func keyToken(n ast.Node) *token.Token {
	switch n := n.(type) {
	case *ast.MappingNode:
		if len(n.Values) > 0 && !n.IsFlowStyle {
			return keyToken(n.Values[0])
		}
	case *ast.MappingValueNode:
		return n.Key.GetToken()
	case *ast.AnchorNode:
		return n.Start
	}
	return n.GetToken()
}
