package sim

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"
)

const (
	maxFormParts = 256
	maxImages    = 16
	maxSpeech    = 4096 // samples
)

// form is a multipart body: its fields, and all that was in it as one line of text.
type form struct {
	fields map[string]string
	said   string
}

// form reads a multipart body to its end.
func (c *call) form() (*form, *apiError) {
	media, attrs, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	if err != nil || media != "multipart/form-data" || attrs["boundary"] == "" {
		var v validation
		v.add("missing", "body.file", "Field required", "None", "")
		return nil, v.err()
	}
	f := &form{fields: map[string]string{}}
	var said []string
	r := multipart.NewReader(strings.NewReader(c.body), attrs["boundary"])
	for range maxFormParts {
		part, err := r.NextPart()
		if errors.Is(err, io.EOF) {
			f.said = strings.Join(said, ", ")
			return f, nil
		}
		if err != nil {
			return nil, badRequest("", "There was an error parsing the body")
		}
		b, err := io.ReadAll(part) // within the body, which is bounded
		if err != nil {
			return nil, badRequest("", "There was an error parsing the body")
		}
		if part.FileName() != "" {
			said = append(said, fmt.Sprintf("%s=%s (%d bytes)", part.FormName(), part.FileName(), len(b)))
			f.fields[part.FormName()] = part.FileName()
			continue
		}
		said = append(said, part.FormName()+"="+string(b))
		f.fields[part.FormName()] = string(b)
	}
	return nil, badRequest("", "Too many fields. Maximum number of fields is %d.", maxFormParts)
}

// formModel checks the model that a form names.
func (c *call) formModel(f *form) *apiError {
	_, _, err := c.model(&params{names: []string{"model"}, values: []gjson.Result{{Type: gjson.String, Str: f.fields["model"]}}})
	return err
}

// transcribe serves /v1/audio/transcriptions and /translations: the text says what was sent.
func (c *call) transcribe() {
	f, err := c.form()
	if err == nil {
		err = c.formModel(f)
	}
	if _, ok := f.get("file"); err == nil && !ok {
		var v validation
		v.add("missing", "body.file", "Field required", "None", "")
		err = v.err()
	}
	if err != nil {
		c.fail(err)
		return
	}
	text := "This is a simulated transcription of " + f.said + "."
	if stream, _ := f.get("stream"); stream == "true" || stream == "1" {
		c.transcribeStream(text)
		return
	}
	switch format, _ := f.get("response_format"); format {
	case "text":
		c.w.Header()["Content-Type"] = []string{"text/plain; charset=utf-8"}
		_, _ = io.WriteString(c.w, text)
	default:
		dst := appendString([]byte(`{"text":`), text)
		c.json(http.StatusOK, append(dst, `,"usage":{"type":"duration","seconds":1}}`...))
	}
}

func (f *form) get(name string) (string, bool) {
	if f == nil {
		return "", false
	}
	v, ok := f.fields[name]
	return v, ok
}

func (c *call) transcribeStream(text string) {
	out := c.begin()
	id, now := c.id("trsc-"), time.Now().Unix()
	var err error
	for i, word := range strings.SplitAfter(text, " ") {
		if err = c.midway(i); err != nil {
			break
		}
		dst := appendString(append(out.data(), `{"id":`...), id)
		dst = appendInt(append(dst, `,"object":"transcription.chunk","created":`...), now)
		dst = appendString(append(dst, `,"model":`...), c.e.opts.Model)
		dst = appendString(append(dst, `,"choices":[{"delta":{"content":`...), word)
		if err = out.send(append(dst, `},"finish_reason":null,"stop_reason":null}]}`...)); err != nil {
			break
		}
	}
	out.end(err)
}

// speech serves /v1/audio/speech: a WAV file of a tone, as long as the text.
func (c *call) speech() {
	p, err := c.params()
	if err == nil {
		_, _, err = c.model(p)
	}
	if err != nil {
		c.fail(err)
		return
	}
	if _, ok := p.get("input"); !ok {
		p.missing("input")
	}
	text := p.string("input")
	if err := p.bad.err(); err != nil {
		c.fail(err)
		return
	}
	samples := make([]byte, min(maxSpeech, 16*len(text)))
	for i := range samples {
		samples[i] = byte(128 + 64*(i/8%2))
	}
	b := append([]byte("RIFF"), binary.LittleEndian.AppendUint32(nil, uint32(36+len(samples)))...)
	b = append(b, "WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00\x40\x1f\x00\x00\x01\x00\x08\x00data"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(samples)))
	b = append(b, samples...)
	h := c.w.Header()
	h["Content-Type"] = []string{"audio/wav"}
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	c.extend()
	_, _ = c.w.Write(b)
}

// images serves /v1/images/generations and /edits: one-coloured squares.
func (c *call) images() {
	var prompt string
	n := 1
	if strings.HasSuffix(c.r.URL.Path, "/edits") {
		f, err := c.form()
		if err == nil {
			err = c.formModel(f)
		}
		if err != nil {
			c.fail(err)
			return
		}
		prompt = f.said
		if v, err := strconv.Atoi(f.fields["n"]); err == nil {
			n = v
		}
	} else {
		p, err := c.params()
		if err == nil {
			_, _, err = c.model(p)
		}
		if err != nil {
			c.fail(err)
			return
		}
		if _, ok := p.get("prompt"); !ok {
			p.missing("prompt")
		}
		prompt = p.string("prompt")
		if v, ok := p.int("n"); ok {
			n = v
		}
		if err := p.bad.err(); err != nil {
			c.fail(err)
			return
		}
	}
	if n < 1 || n > maxImages {
		c.fail(badRequest("n", "n must be from 1 to %d, got %d.", maxImages, n))
		return
	}
	dst := appendInt([]byte(`{"created":`), time.Now().Unix())
	dst = append(dst, `,"data":[`...)
	for i := range n {
		picture, err := square(chain(hashString(prompt), uint64(i)))
		if err != nil {
			c.fail(err)
			return
		}
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = base64.StdEncoding.AppendEncode(append(dst, `{"b64_json":"`...), picture)
		dst = append(dst, `"}`...)
	}
	c.json(http.StatusOK, append(dst, "]}"...))
}

// square is a PNG of 8 by 8 pixels in a colour that h sets.
func square(h uint64) ([]byte, error) {
	h = scramble(h)
	img := image.NewPaletted(image.Rect(0, 0, 8, 8), color.Palette{color.RGBA{byte(h), byte(h >> 8), byte(h >> 16), 255}})
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		return nil, fmt.Errorf("encode image: %w", err)
	}
	return b.Bytes(), nil
}
