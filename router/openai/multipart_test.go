package openai

import (
	"bytes"
	"mime/multipart"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestScanMultipart(t *testing.T) {
	var whole bytes.Buffer
	w := multipart.NewWriter(&whole)
	require.NoError(t, w.WriteField("language", "de"))
	part, err := w.CreateFormFile("file", "model.wav")
	require.NoError(t, err)
	_, err = part.Write([]byte("RIFF\r\n--not the boundary\r\n\r\n"))
	require.NoError(t, err)
	require.NoError(t, w.WriteField("model", "whisper"))
	require.NoError(t, w.WriteField("empty", ""))
	require.NoError(t, w.WriteField("stream", "true"))
	require.NoError(t, w.Close())

	var f fields
	require.NoError(t, scanMultipart(whole.Bytes(), w.FormDataContentType(), &f))
	require.Equal(t, "whisper", string(f.name))
	require.Equal(t, "whisper", string(f.model.of(whole.Bytes())))
	require.True(t, f.stream)

	for n := range whole.Len() - 4 { // cut at every byte before the closing boundary is whole
		var f fields
		require.Error(t, scanMultipart(whole.Bytes()[:n], w.FormDataContentType(), &f), "cut at %d", n)
	}
	require.ErrorContains(t, scanMultipart(whole.Bytes(), "application/json", &f), "multipart/form-data")
	require.ErrorContains(t, scanMultipart(whole.Bytes(), "multipart/form-data", &f), "boundary")
	many := strings.Repeat("--b\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\n\r\n", maxParts+1) + "--b--"
	require.ErrorContains(t, scanMultipart([]byte(many), "multipart/form-data; boundary=b", &f), "more than")
}

// FuzzScanMultipart: what mime/multipart reads to its end, the scanner reads with the same model.
func FuzzScanMultipart(f *testing.F) {
	f.Add([]byte("--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--b--\r\n"))
	f.Add([]byte("x\r\n--b\r\n\r\n\r\n--b--"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got fields
		if scanMultipart(b, "multipart/form-data; boundary=b", &got) != nil || got.name == nil {
			return
		}
		require.Equal(t, string(got.name), string(got.model.of(b)))
	})
}
