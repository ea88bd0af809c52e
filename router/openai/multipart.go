package openai

import (
	"bytes"
	"errors"
	"fmt"
	"mime"
)

// maxParts bounds the parts of a multipart body.
const maxParts = 1000

var errMultipart = errors.New("the multipart body is truncated or malformed")

// scanMultipart finds the model's name and the stream field in a multipart/form-data body
// without decoding it: every part goes to the engine as it came. It checks that the body
// is whole up to its closing boundary (RFC 2046 section 5.1.1).
func scanMultipart(b []byte, contentType string, f *fields) error {
	media, params, err := mime.ParseMediaType(contentType)
	if err != nil || media != "multipart/form-data" || params["boundary"] == "" {
		return errors.New("this path takes multipart/form-data with a boundary")
	}
	if len(b) == 0 {
		return errEmptyBody
	}
	delimiter := []byte("\r\n--" + params["boundary"])
	at := 0
	if !bytes.HasPrefix(b, delimiter[2:]) { // a preamble may stand before the first part
		if at = bytes.Index(b, delimiter); at < 0 {
			return errMultipart
		}
		at += 2
	}
	at += len(delimiter) - 2
	for range maxParts {
		if bytes.HasPrefix(b[at:], []byte("--")) {
			return nil
		}
		line := bytes.Index(b[at:], []byte("\r\n"))
		if line < 0 || len(bytes.TrimLeft(b[at:at+line], " \t")) > 0 {
			return errMultipart
		}
		at += line
		head := bytes.Index(b[at:], []byte("\r\n\r\n"))
		if head < 0 {
			return errMultipart
		}
		name := partName(b[at : at+head])
		from := at + head + 4
		// the delimiter may begin with the blank line that ends the part's head
		length := bytes.Index(b[from-2:], delimiter)
		if length < 0 {
			return errMultipart
		}
		to := max(from, from-2+length)
		switch name {
		case "model":
			f.model = span{from, to}
			f.name = b[from:to]
		case "stream":
			f.stream = string(b[from:to]) == "true"
		}
		at = from - 2 + length + len(delimiter)
	}
	return fmt.Errorf("the multipart body has more than %d parts", maxParts)
}

// partName gives the name of a part from its head's Content-Disposition, "" without one.
func partName(head []byte) string {
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		key, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || !bytes.EqualFold(bytes.TrimSpace(key), []byte("content-disposition")) {
			continue
		}
		if _, params, err := mime.ParseMediaType(string(value)); err == nil {
			return params["name"]
		}
	}
	return ""
}
