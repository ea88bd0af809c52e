package ctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

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

// toYAML gives v as YAML, with the names that JSON has and in their order.
func toYAML(v any) (string, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("write YAML: %w", err)
	}
	y := yamlWriter{in: json.NewDecoder(bytes.NewReader(raw))}
	y.in.UseNumber()
	if err := y.value("", ""); err != nil {
		return "", fmt.Errorf("write YAML: %w", err)
	}
	return y.out.String(), nil
}

// yamlWriter writes JSON as YAML in block style. Strings that need quotes are JSON's, which YAML reads too.
type yamlWriter struct {
	in  *json.Decoder
	out strings.Builder
}

// value writes the next value, after lead on the line that is begun: " " after a key, "" at its beginning. The lines
// of its own begin with indent.
func (y *yamlWriter) value(lead, indent string) error {
	token, err := y.in.Token()
	if err != nil {
		return err
	}
	open, isDelim := token.(json.Delim)
	if !isDelim {
		y.out.WriteString(lead + yamlScalar(token) + "\n")
		return nil
	}
	if !y.in.More() {
		y.out.WriteString(lead + map[json.Delim]string{'{': "{}", '[': "[]"}[open] + "\n")
		_, err = y.in.Token()
		return err
	}
	begun := lead == "" // the first entry goes on the line that is begun
	if !begun {
		y.out.WriteString("\n")
	}
	for y.in.More() {
		if !begun {
			y.out.WriteString(indent)
		}
		begun = false
		if open == '[' {
			y.out.WriteString("- ")
			err = y.value("", indent+"  ")
		} else {
			key, keyErr := y.in.Token()
			if keyErr != nil {
				return keyErr
			}
			y.out.WriteString(yamlScalar(key) + ":")
			err = y.value(" ", indent+"  ")
		}
		if err != nil {
			return err
		}
	}
	_, err = y.in.Token()
	return err
}

func yamlScalar(token json.Token) string {
	switch v := token.(type) {
	case nil:
		return "null"
	case string:
		if plain(v) {
			return v
		}
		quoted, _ := toJSON(v) // a string can always be written
		return strings.TrimSuffix(quoted, "\n")
	}
	return fmt.Sprint(token)
}

// plain tells whether YAML reads s as that very string without quotes; it says so of fewer than there are.
func plain(s string) bool {
	switch strings.ToLower(s) {
	case "", "true", "false", "yes", "no", "on", "off", "y", "n", "null":
		return false
	}
	letter := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
	if !letter(s[0]) && s[0] != '/' || s[len(s)-1] == ' ' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !letter(c) && (c < '0' || c > '9') && !strings.ContainsRune(" _./-", rune(c)) {
			return false
		}
	}
	return true
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
