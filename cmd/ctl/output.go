package ctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
)

// Forms of output.
const (
	asTable = ""
	asWide  = "wide"
	asJSON  = "json"
	asYAML  = "yaml"
	asName  = "name"
)

// outputs lists the forms that -o takes.
func outputs() []string { return []string{asWide, asJSON, asYAML, asName} }

// outputFlag adds -o.
func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "", "wide, json, yaml or name (default a table)")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs(), cobra.ShellCompDirectiveNoFileComp))
}

// toJSON gives v as indented JSON. Characters that would drive a terminal are written as \u escapes.
func toJSON(v any) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return "", fmt.Errorf("write JSON: %w", err)
	}
	return escaped(b.String()), nil
}

// escaped replaces what would drive a terminal by \u escapes; outside of line ends it stands in strings only.
func escaped(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r != '\n' && unprintable(r) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if r != '\n' && unprintable(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// toYAML gives v as YAML, with the names that JSON has.
func toYAML(v any) (string, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("write YAML: %w", err)
	}
	var ordered any
	if err := yaml.UnmarshalWithOptions([]byte(escaped(string(raw))), &ordered, yaml.UseOrderedMap()); err != nil {
		return "", fmt.Errorf("write YAML: %w", err)
	}
	out, err := yaml.MarshalWithOptions(ordered, yaml.IndentSequence(false))
	if err != nil {
		return "", fmt.Errorf("write YAML: %w", err)
	}
	return string(out), nil
}

// shown gives text of many lines as it may go to a terminal.
func shown(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r != '\n' && unprintable(r) }) && utf8.ValidString(s) {
		return s
	}
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = clean(line)
	}
	return strings.Join(lines, "\n")
}
