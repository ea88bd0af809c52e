package fetch

import (
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fakeS3 is as much of S3 as a reader uses, with buckets addressed by path and lists in pages of two.
type fakeS3 struct {
	mu      sync.Mutex
	objects map[string]string // by bucket/key
	stall   bool
}

func (s *fakeS3) put(name, content string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[name] = content
}

func (s *fakeS3) get(name string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	content, ok := s.objects[name]
	return content, ok
}

type listed struct {
	XMLName               xml.Name       `xml:"ListBucketResult"`
	Name                  string         `xml:"Name"`
	IsTruncated           bool           `xml:"IsTruncated"`
	NextContinuationToken string         `xml:"NextContinuationToken,omitempty"`
	Contents              []listedObject `xml:"Contents"`
}

type listedObject struct {
	Key          string    `xml:"Key"`
	Size         int       `xml:"Size"`
	ETag         string    `xml:"ETag"`
	LastModified time.Time `xml:"LastModified"`
}

func etag(content string) string { return fmt.Sprintf(`"%x"`, content) }

func (s *fakeS3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case !strings.Contains(r.Header.Get("Authorization"), "Credential=reader/"):
		fail(w, http.StatusForbidden, "AccessDenied")
	case bucket != "models":
		fail(w, http.StatusNotFound, "NoSuchBucket")
	case key == "":
		s.list(w, r)
	default:
		content, ok := s.get(bucket + "/" + key)
		if !ok {
			fail(w, http.StatusNotFound, "NoSuchKey")
			return
		}
		if want := r.Header.Get("If-Match"); want != "" && strings.Trim(want, `"`) != strings.Trim(etag(content), `"`) {
			fail(w, http.StatusPreconditionFailed, "PreconditionFailed")
			return
		}
		w.Header().Set("ETag", etag(content))
		w.Header().Set("Last-Modified", time.Unix(0, 0).UTC().Format(http.TimeFormat))
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		if r.Method == http.MethodHead {
			return
		}
		if s.stall {
			_, _ = io.WriteString(w, content[:1])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return
		}
		_, _ = io.WriteString(w, content)
	}
}

func (s *fakeS3) list(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := r.URL.Query()
	answer := listed{Name: "models"}
	for _, name := range slices.Sorted(maps.Keys(s.objects)) {
		key := strings.TrimPrefix(name, "models/")
		if !strings.HasPrefix(key, q.Get("prefix")) || key <= q.Get("continuation-token") {
			continue
		}
		if len(answer.Contents) == 2 {
			answer.IsTruncated, answer.NextContinuationToken = true, answer.Contents[1].Key
			break
		}
		answer.Contents = append(answer.Contents, listedObject{Key: key, Size: len(s.objects[name]), ETag: etag(s.objects[name]), LastModified: time.Unix(0, 0).UTC()})
	}
	w.Header().Set("Content-Type", "application/xml")
	_ = xml.NewEncoder(w).Encode(answer)
}

func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", code)
}

// bucketOf serves a fake, and points AWS's variables at it.
func bucketOf(t *testing.T, objects map[string]string) *fakeS3 {
	t.Helper()
	fake := &fakeS3{objects: objects}
	s := serve(t, fake.ServeHTTP)
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": s.URL, "AWS_ENDPOINT_URL_S3": "", "AWS_REGION": "eu-central-1",
		"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_SESSION_TOKEN": "",
	} {
		t.Setenv(name, value)
	}
	return fake
}

func TestFetchFromS3(t *testing.T) {
	bucketOf(t, map[string]string{
		"models/lora/adapter_config.json": "{}",
		"models/lora/":                    "",
		"models/lora/a/weights.bin":       "1",
		"models/lora/b":                   "2",
		"models/lora/c%20d e?":            "3",
		"models/lora-other/x":             "no",
		"models/lora.tar":                 string(tarOf(t, entry{name: "x/a", content: "1"})),
		"models/deep/one.gguf":            "GGUF",
	})
	f, _ := fetcher(t, Options{})
	for _, source := range []string{"s3://models/lora", "s3://models/lora/"} {
		path, err := f.Fetch(t.Context(), source)
		require.NoError(t, err)
		for name, want := range map[string]string{"adapter_config.json": "{}", "a/weights.bin": "1", "b": "2", "c%20d e?": "3"} {
			require.Equal(t, want, read(t, filepath.Join(path, name)))
		}
		require.NoFileExists(t, filepath.Join(path, "x"))
	}
	path, err := f.Fetch(t.Context(), "s3://models/lora.tar")
	require.NoError(t, err)
	require.Equal(t, "x", filepath.Base(path))
	require.Equal(t, "1", read(t, filepath.Join(path, "a")))
	path, err = f.Fetch(t.Context(), "s3://models/deep/one.gguf")
	require.NoError(t, err)
	require.Equal(t, "one.gguf", filepath.Base(path))
	require.Equal(t, "GGUF", read(t, path))
	path, err = f.Fetch(t.Context(), "s3://models")
	require.NoError(t, err)
	require.Equal(t, "no", read(t, filepath.Join(path, "lora-other", "x")))
}

func TestS3Reuse(t *testing.T) {
	fake := bucketOf(t, map[string]string{"models/lora/a": "1", "models/lora/b": "1"})
	f, _ := fetcher(t, Options{})
	first, err := f.Fetch(t.Context(), "s3://models/lora")
	require.NoError(t, err)
	again, err := f.Fetch(t.Context(), "s3://models/lora")
	require.NoError(t, err)
	require.Equal(t, first, again)
	fake.put("models/lora/b", "2")
	second, err := f.Fetch(t.Context(), "s3://models/lora")
	require.NoError(t, err)
	require.Equal(t, "2", read(t, filepath.Join(second, "b")))
	t.Setenv("AWS_ACCESS_KEY_ID", "nobody")
	again, err = f.Fetch(t.Context(), "s3://models/lora")
	require.NoError(t, err)
	require.Equal(t, second, again)
}

func TestS3Failures(t *testing.T) {
	for name, tc := range map[string]struct {
		source string
		set    func(t *testing.T, fake *fakeS3)
		want   error
		says   string
	}{
		"no such bucket":      {source: "s3://nothing/x", want: ErrNotFound, says: `no bucket "nothing"`},
		"no such object":      {source: "s3://models/nothing", want: ErrNotFound, says: `nothing at "nothing"`},
		"no such archive":     {source: "s3://models/nothing.tar", want: ErrNotFound, says: `nothing at "nothing.tar"`},
		"no name of a bucket": {source: "s3://ab/x", want: ErrSource, says: "shorter than 3"},
		"wrong credentials": {source: "s3://models/lora", want: ErrForbidden, says: "AWS_ACCESS_KEY_ID", set: func(t *testing.T, _ *fakeS3) {
			t.Helper()
			t.Setenv("AWS_ACCESS_KEY_ID", "nobody")
		}},
		"a bad endpoint": {source: "s3://models/lora", want: ErrSource, says: "AWS_ENDPOINT_URL", set: func(t *testing.T, _ *fakeS3) {
			t.Helper()
			t.Setenv("AWS_ENDPOINT_URL", "minio:9000")
		}},
		"stalled": {source: "s3://models/lora", want: ErrStalled, set: func(t *testing.T, fake *fakeS3) {
			t.Helper()
			fake.stall = true
		}},
		"a key that leads out": {source: "s3://models/evil", want: ErrArchive, says: "../x"},
		"too large":            {source: "s3://models/large", want: ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			fake := bucketOf(t, map[string]string{
				"models/lora/a": "content", "models/evil/../x": "1", "models/evil/y": "1",
				"models/large/a": strings.Repeat("x", 3000), "models/large/b": strings.Repeat("x", 3000),
			})
			if tc.set != nil {
				tc.set(t, fake)
			}
			f, dir := fetcher(t, Options{MaxBytes: 4096, Idle: patience(tc.want)})
			_, err := f.Fetch(t.Context(), tc.source)
			require.ErrorIs(t, err, tc.want)
			require.ErrorContains(t, err, tc.says)
			require.NotContains(t, err.Error(), "hunter2")
			requireEmpty(t, dir)
		})
	}
}
