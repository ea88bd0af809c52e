package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// writeYAML gives a value that encoding/json takes as YAML, its fields in the order that JSON has them in.
func writeYAML(v any) ([]byte, error) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	w := yamlWriter{in: json.NewDecoder(&text)}
	w.in.UseNumber()
	if err := w.value(0, false); err != nil {
		return nil, err
	}
	return w.out.Bytes(), nil
}

type yamlWriter struct {
	in  *json.Decoder
	out bytes.Buffer
}

// value writes the next value. One that is inline begins in the line that is open, after "- ".
func (w *yamlWriter) value(indent int, inline bool) error {
	token, err := w.in.Token()
	if err != nil {
		return err
	}
	delim, nested := token.(json.Delim)
	if !nested {
		_, err := fmt.Fprintf(&w.out, "%s\n", scalar(token))
		return err
	}
	if !w.in.More() {
		_, err := w.in.Token()
		w.out.WriteString(map[json.Delim]string{'{': "{}\n", '[': "[]\n"}[delim])
		return err
	}
	for first := true; w.in.More(); first = false {
		if !first || !inline {
			w.out.WriteString(strings.Repeat(" ", indent))
		}
		if delim == '[' {
			w.out.WriteString("- ")
			if err := w.value(indent+2, true); err != nil {
				return err
			}
			continue
		}
		key, err := w.in.Token()
		if err != nil {
			return err
		}
		w.out.WriteString(scalar(key) + ":")
		if err := w.member(indent); err != nil {
			return err
		}
	}
	_, err = w.in.Token()
	return err
}

// member writes the value of a key, in the key's line if it is a scalar or empty.
func (w *yamlWriter) member(indent int) error {
	var raw json.RawMessage
	if err := w.in.Decode(&raw); err != nil {
		return err
	}
	below := yamlWriter{in: json.NewDecoder(bytes.NewReader(raw))}
	below.in.UseNumber()
	if err := below.value(indent+2, false); err != nil {
		return err
	}
	text := below.out.String()
	if strings.HasPrefix(text, " ") {
		w.out.WriteString("\n" + text)
	} else {
		w.out.WriteString(" " + text)
	}
	return nil
}

// scalar gives text as it is where it is a plain word of letters, else quoted as JSON has it, which YAML reads.
func scalar(token json.Token) string {
	s, isText := token.(string)
	if !isText {
		if token == nil {
			return "null"
		}
		return fmt.Sprint(token)
	}
	plain := regexp.MustCompile(`^[A-Za-z$][A-Za-z0-9./_-]*$`).MatchString(s)
	switch strings.ToLower(s) {
	case "true", "false", "yes", "no", "on", "off", "null", "y", "n":
		plain = false
	}
	if plain {
		return s
	}
	var quoted bytes.Buffer
	enc := json.NewEncoder(&quoted)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a buffer takes all, and text can be encoded
	return strings.TrimSpace(quoted.String())
}
