package fetch

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// entry is one thing in an archive; its kind is tar's, a file's when it is 0.
type entry struct {
	name, content, target string
	kind                  byte
}

func tarOf(tb testing.TB, entries ...entry) []byte {
	tb.Helper()
	var all bytes.Buffer
	w := tar.NewWriter(&all)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.target, Size: int64(len(e.content)), Mode: 0o644}
		if e.kind == tar.TypeXGlobalHeader {
			h = &tar.Header{Name: e.name, Typeflag: e.kind, PAXRecords: map[string]string{"comment": "1234"}}
		}
		require.NoError(tb, w.WriteHeader(h))
		_, err := io.WriteString(w, e.content)
		require.NoError(tb, err)
	}
	require.NoError(tb, w.Close())
	return all.Bytes()
}

func gzipOf(tb testing.TB, data []byte) []byte {
	tb.Helper()
	var all bytes.Buffer
	w := gzip.NewWriter(&all)
	_, err := w.Write(data)
	require.NoError(tb, err)
	require.NoError(tb, w.Close())
	return all.Bytes()
}

func zipOf(tb testing.TB, entries ...entry) []byte {
	tb.Helper()
	var all bytes.Buffer
	w := zip.NewWriter(&all)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate}
		h.SetMode(0o644)
		content := e.content
		switch e.kind {
		case tar.TypeSymlink:
			h.SetMode(fs.ModeSymlink | 0o777)
			content = e.target
		case tar.TypeFifo:
			h.SetMode(fs.ModeNamedPipe | 0o644)
		}
		f, err := w.CreateHeader(h)
		require.NoError(tb, err)
		_, err = io.WriteString(f, content)
		require.NoError(tb, err)
	}
	require.NoError(tb, w.Close())
	return all.Bytes()
}

// into makes a folder with the bounds of tests: 1 MiB and 100 files.
func into(tb testing.TB) *folder {
	tb.Helper()
	name := filepath.Join(tb.TempDir(), "outside", "copy-1")
	require.NoError(tb, os.MkdirAll(name, 0o700))
	f, err := newFolder(name, 1<<20, 100)
	require.NoError(tb, err)
	f.sync = func(*os.File) error { return nil } // no test pulls the plug, and a fuzzer waits for each
	tb.Cleanup(func() { require.NoError(tb, f.root.Close()) })
	return f
}

func TestArchives(t *testing.T) {
	deep := strings.Repeat("d/", 70)
	for name, tc := range map[string]struct {
		entries []entry
		want    error  // nil: it is unpacked
		path    string // what matters in it
		zip     bool   // also as a zip
	}{
		"files":                {entries: []entry{{name: "a", content: "1"}, {name: "b/c", content: "2"}}, zip: true},
		"one folder":           {entries: []entry{{name: "lora/", kind: tar.TypeDir}, {name: "lora/a", content: "1"}, {name: "lora/b/c", content: "1"}}, path: "lora"},
		"one folder, unnamed":  {entries: []entry{{name: "lora/a", content: "1"}}, path: "lora", zip: true},
		"names with a dot":     {entries: []entry{{name: "./", kind: tar.TypeDir}, {name: "./a", content: "1"}}},
		"a link inside":        {entries: []entry{{name: "b/a", content: "1"}, {name: "c", kind: tar.TypeSymlink, target: "b/a"}}, zip: true},
		"a link to a later":    {entries: []entry{{name: "c", kind: tar.TypeSymlink, target: "b/a"}, {name: "b/a", content: "1"}}, zip: true},
		"a hard link":          {entries: []entry{{name: "a", content: "1"}, {name: "b", kind: tar.TypeLink, target: "a"}}},
		"a file twice":         {entries: []entry{{name: "a", content: "1"}, {name: "a", content: "2"}}, zip: true},
		"a header of git's":    {entries: []entry{{name: "pax_global_header", kind: tar.TypeXGlobalHeader}, {name: "a", content: "1"}}},
		"nothing":              {want: ErrArchive, zip: true},
		"up":                   {entries: []entry{{name: "../evil", content: "1"}}, want: ErrArchive, zip: true},
		"up within":            {entries: []entry{{name: "a/../../evil", content: "1"}}, want: ErrArchive, zip: true},
		"absolute":             {entries: []entry{{name: "/tmp/evil", content: "1"}}, want: ErrArchive, zip: true},
		"a folder up":          {entries: []entry{{name: "../evil/", kind: tar.TypeDir}}, want: ErrArchive},
		"a link out":           {entries: []entry{{name: "a", kind: tar.TypeSymlink, target: "../outside"}}, want: ErrArchive, zip: true},
		"a link to the root":   {entries: []entry{{name: "a", kind: tar.TypeSymlink, target: "/etc/passwd"}}, want: ErrArchive, zip: true},
		"a link to nothing":    {entries: []entry{{name: "a", kind: tar.TypeSymlink, target: "b"}}, want: ErrArchive, zip: true},
		"a link to itself":     {entries: []entry{{name: "a", kind: tar.TypeSymlink, target: "a"}}, want: ErrArchive, zip: true},
		"out by two links":     {entries: []entry{{name: "p/q/d", kind: tar.TypeSymlink, target: "../.."}, {name: "l", kind: tar.TypeSymlink, target: "p/q/d/../etc"}}, want: ErrArchive, zip: true},
		"writing by a link":    {entries: []entry{{name: "d", kind: tar.TypeSymlink, target: ".."}, {name: "d/evil", content: "1"}}, want: ErrArchive, zip: true},
		"writing over a link":  {entries: []entry{{name: "d", kind: tar.TypeSymlink, target: "../evil"}, {name: "d", content: "1"}}, zip: true},
		"a hard link out":      {entries: []entry{{name: "a", kind: tar.TypeLink, target: "../../x"}}, want: ErrArchive},
		"a hard link to /":     {entries: []entry{{name: "a", kind: tar.TypeLink, target: "/etc/passwd"}}, want: ErrArchive},
		"a device":             {entries: []entry{{name: "a", kind: tar.TypeChar}}, want: ErrArchive},
		"a pipe":               {entries: []entry{{name: "a", kind: tar.TypeFifo}}, want: ErrArchive, zip: true},
		"a file on a folder":   {entries: []entry{{name: "a/b", content: "1"}, {name: "a", content: "1"}}, want: ErrArchive, zip: true},
		"a folder on a file":   {entries: []entry{{name: "a", content: "1"}, {name: "a/b", content: "1"}}, want: ErrArchive, zip: true},
		"a long name":          {entries: []entry{{name: strings.Repeat("x", 300), content: "1"}}, want: ErrArchive, zip: true},
		"deep":                 {entries: []entry{{name: deep + "a", content: "1"}}, want: ErrArchive, zip: true},
		"too many bytes":       {entries: []entry{{name: "a", content: strings.Repeat("\x00", 1<<20)}, {name: "b", content: "1"}}, want: ErrTooLarge, zip: true},
		"too many files":       {entries: many(101), want: ErrTooLarge, zip: true},
		"as many files as may": {entries: many(100), zip: true},
	} {
		t.Run(name, func(t *testing.T) {
			data := tarOf(t, tc.entries...)
			archives := map[string][]byte{"x.tar": data, "x.tar.gz": gzipOf(t, data), "x.TGZ": gzipOf(t, data)}
			if tc.zip {
				archives["x.zip"] = zipOf(t, tc.entries...)
			}
			for file, data := range archives {
				f := into(t)
				err := saveOne(t.Context(), file, bytes.NewReader(data), f)
				path := ""
				if err == nil {
					path, err = f.finish()
				}
				if tc.want != nil {
					require.ErrorIs(t, err, tc.want, file)
				} else {
					require.NoError(t, err, file)
					require.Equal(t, tc.path, path, file)
				}
				requireInside(t, f)
			}
		})
	}
}

// TestDamagedArchives cuts and changes archives in all places.
func TestDamagedArchives(t *testing.T) {
	data := tarOf(t, entry{name: "a", content: strings.Repeat("weights", 100)}, entry{name: "b", content: "1"})
	zipped, gzipped := zipOf(t, entry{name: "a", content: strings.Repeat("weights", 100)}), gzipOf(t, data)
	flipped := bytes.Clone(gzipped)
	flipped[len(flipped)-6] ^= 1
	for name, tc := range map[string]struct {
		file string
		data []byte
	}{
		"no tar":                    {"x.tar", []byte(strings.Repeat("x", 2000))},
		"no gzip":                   {"x.tgz", data},
		"no zip":                    {"x.zip", data},
		"an empty tar":              {"x.tar", nil},
		"an empty gzip":             {"x.tgz", nil},
		"a page that says sorry":    {"x.tar.gz", []byte("<html>Sign in</html>")},
		"tar cut in a file":         {"x.tar", data[:700]},
		"gzip cut":                  {"x.tgz", gzipped[:len(gzipped)-12]},
		"gzip without its checksum": {"x.tgz", gzipped[:len(gzipped)-8]},
		"gzip with a wrong one":     {"x.tgz", flipped},
		"zip cut":                   {"x.zip", zipped[:len(zipped)-10]},
		"zip cut in a file":         {"x.zip", zipped[10:]},
	} {
		t.Run(name, func(t *testing.T) {
			f := into(t)
			err := saveOne(t.Context(), tc.file, bytes.NewReader(tc.data), f)
			if err == nil {
				_, err = f.finish()
			}
			require.ErrorIs(t, err, ErrArchive)
			requireInside(t, f)
		})
	}
}

func TestContents(t *testing.T) {
	f := into(t)
	data := tarOf(t, entry{name: "a", content: "1"}, entry{name: "a", content: "2"},
		entry{name: "b/c", content: "3"}, entry{name: "l", kind: tar.TypeSymlink, target: "b/c"})
	require.NoError(t, saveOne(t.Context(), "x.tar", bytes.NewReader(data), f))
	_, err := f.finish()
	require.NoError(t, err)
	for name, want := range map[string]string{"a": "2", "b/c": "3", "l": "3"} {
		got, err := os.ReadFile(filepath.Join(f.name, name))
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
}

func TestSingleFilesAreNamedAfterTheirURL(t *testing.T) {
	for url, want := range map[string]string{
		"/a/b/model.gguf": "model.gguf", "/": "file", "": "file", "/..": "file", "/a/": "a",
		"/" + strings.Repeat("x", 250): "file", "/a\x00b": "file",
	} {
		f := into(t)
		require.NoError(t, saveOne(t.Context(), url, strings.NewReader("1"), f))
		got, err := f.finish()
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.FileExists(t, filepath.Join(f.name, want))
	}
}

func many(n int) []entry {
	var all []entry
	for i := range n {
		all = append(all, entry{name: strconv.Itoa(i), content: "1"})
	}
	return all
}

// requireInside looks whether anything got out of the folder, or could be read out of it by way of a link.
func requireInside(tb testing.TB, f *folder) {
	tb.Helper()
	outside, err := os.ReadDir(filepath.Dir(f.name))
	require.NoError(tb, err)
	require.Len(tb, outside, 1)
	above, err := os.ReadDir(filepath.Dir(filepath.Dir(f.name)))
	require.NoError(tb, err)
	require.Len(tb, above, 1)
}

func FuzzTar(f *testing.F) {
	f.Add(tarOf(f, entry{name: "a", content: "1"}, entry{name: "b", kind: tar.TypeSymlink, target: "a"}))
	f.Add(tarOf(f, entry{name: "../a", content: "1"}))
	f.Add(tarOf(f, entry{name: "d", kind: tar.TypeSymlink, target: "../"}, entry{name: "d/x", content: "1"}))
	f.Add(tarOf(f, entry{name: "a", content: "1"}, entry{name: "b", kind: tar.TypeLink, target: "a"}))
	f.Fuzz(func(t *testing.T, data []byte) { unpackAny(t, "x.tar", data) })
}

func FuzzZip(f *testing.F) {
	f.Add(zipOf(f, entry{name: "a", content: "1"}, entry{name: "b", kind: tar.TypeSymlink, target: "a"}))
	f.Add(zipOf(f, entry{name: "../a", content: "1"}))
	f.Add(zipOf(f, entry{name: "d", kind: tar.TypeSymlink, target: "../"}, entry{name: "d/x", content: "1"}))
	f.Fuzz(func(t *testing.T, data []byte) { unpackAny(t, "x.zip", data) })
}

// unpackAny unpacks what may be anything: nothing gets out, and all that is left can be read within.
func unpackAny(t *testing.T, name string, data []byte) {
	t.Helper()
	f := into(t)
	err := saveOne(t.Context(), name, bytes.NewReader(data), f)
	if err == nil {
		_, err = f.finish()
	}
	requireInside(t, f)
	if err != nil {
		return
	}
	inside, err := filepath.EvalSymlinks(f.name)
	require.NoError(t, err)
	require.NoError(t, filepath.WalkDir(f.name, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		leads, err := filepath.EvalSymlinks(path)
		require.NoError(t, err)
		require.True(t, leads == inside || strings.HasPrefix(leads, inside+"/"), "%s leads to %s", path, leads)
		return nil
	}))
}
