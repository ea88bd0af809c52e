package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const repository = "../.."

// program is a main whose binary is small.
const program = "package main\n\nfunc main() {}\n"

func TestImageIsWhatTheDockerfileMakes(t *testing.T) {
	img := read(t, archiveOf(t, build(t, "amd64")))
	m := img.manifests(t)[0]
	file, err := os.ReadFile(filepath.Join(repository, "Dockerfile"))
	require.NoError(t, err)
	_, final, ok := strings.Cut(strings.ReplaceAll(string(file), "\\\n", " "), "\nFROM scratch\n")
	require.True(t, ok, "the last stage begins with nothing")
	instruction := func(name string) string {
		found := regexp.MustCompile(`(?m)^` + name + `\s+(.*)$`).FindStringSubmatch(final)
		require.NotNil(t, found, name)
		return found[1]
	}

	var entry []string
	require.NoError(t, json.Unmarshal([]byte(instruction("ENTRYPOINT")), &entry))
	require.Equal(t, entry, m.config.Config.Entrypoint)
	require.Equal(t, instruction("USER"), m.config.Config.User)
	require.Equal(t, instruction("WORKDIR"), m.config.Config.WorkingDir)
	require.ElementsMatch(t, strings.Fields(instruction("ENV")), m.config.Config.Env)
	for _, label := range regexp.MustCompile(`(\S+)="([^"$]+)"`).FindAllStringSubmatch(instruction("LABEL"), -1) {
		require.Equal(t, label[2], m.config.Config.Labels[label[1]], label[1])
	}
	require.Equal(t, "--from=build /image/ /", instruction("COPY"))
	for name, f := range m.files {
		if f.Typeflag == tar.TypeReg {
			require.Contains(t, string(file), "/image/"+name, "what the image has the Dockerfile makes too")
		}
	}
	for _, name := range []string{"etc/passwd", "etc/group"} {
		require.Contains(t, string(file), "'"+strings.ReplaceAll(string(m.content[name]), "\n", `\n`)+"'", name)
	}
}

func TestDockerignoreLetsInWhatTheBuildNeeds(t *testing.T) {
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "./cmd/mobula")
	list.Dir = repository
	out, err := list.Output()
	require.NoError(t, err)
	ignore, err := os.ReadFile(filepath.Join(repository, ".dockerignore"))
	require.NoError(t, err)
	for room := range strings.FieldsSeq(string(out)) {
		if folder, ok := strings.CutPrefix(room, "github.com/mobula-serve/mobula/"); ok {
			top, _, _ := strings.Cut(folder, "/")
			require.NotContains(t, strings.Fields(string(ignore)), top, "the build needs %s", room)
		}
	}
}

func TestSameBinarySameBytes(t *testing.T) {
	binary := build(t, "amd64")
	a, err := os.ReadFile(archiveOf(t, binary))
	require.NoError(t, err)
	b, err := os.ReadFile(archiveOf(t, binary))
	require.NoError(t, err)
	require.True(t, bytes.Equal(a, b))
}

func TestBlobsAreWhatTheirDigestsSay(t *testing.T) {
	img := read(t, archiveOf(t, build(t, "amd64"), build(t, "arm64")))
	for name, content := range img {
		if sum, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
			require.Equal(t, "sha256:"+sum, digest(content))
		}
	}
	manifests := img.manifests(t)
	require.Len(t, manifests, 2)
	for i, arch := range []string{"amd64", "arm64"} {
		m := manifests[i]
		require.Equal(t, arch, m.config.Architecture)
		require.Equal(t, &platform{Architecture: arch, OS: "linux"}, m.at.Platform)
		require.Equal(t, int64(0o755), m.files["mobula"].Mode)
		require.Equal(t, int64(0o1777), m.files["tmp/"].Mode)
		require.Equal(t, "sha256:"+m.diff, m.config.Rootfs.DiffIDs[0])
		got, err := architecture(m.content["mobula"])
		require.NoError(t, err)
		require.Equal(t, arch, got)
	}
}

func TestMaterialsAreWhatTheBinaryWasBuiltFrom(t *testing.T) {
	self, err := os.Executable() // Go notes the same in a test's binary
	require.NoError(t, err)
	content, err := os.ReadFile(self)
	require.NoError(t, err)
	sbom, err := materials(content)
	require.NoError(t, err)
	var b bom
	require.NoError(t, json.Unmarshal(sbom, &b))
	require.Equal(t, []string{"CycloneDX", "1.6", "pkg:golang/github.com/mobula-serve/mobula"}, []string{b.Format, b.Spec, b.Metadata.Component.URL})
	versions := map[string]string{}
	for _, c := range b.Components {
		versions[c.Name] = c.Version
	}
	require.Equal(t, strings.TrimPrefix(runtime.Version(), "go"), versions["std"])
	info, ok := debug.ReadBuildInfo()
	require.True(t, ok)
	require.Len(t, versions, len(info.Deps)+1)
	for _, dep := range info.Deps {
		require.Equal(t, dep.Version, versions[dep.Path])
	}
}

func TestRefusesWhatCannotRun(t *testing.T) {
	out := filepath.Join(t.TempDir(), "x.tar")
	text := filepath.Join(t.TempDir(), "text")
	require.NoError(t, os.WriteFile(text, []byte("#!/bin/sh\n"), 0o700))
	for name, args := range map[string][]string{
		"no binary":       {"-out", out},
		"no output":       {text},
		"not a program":   {"-out", out, text},
		"no such binary":  {"-out", out, text + "-none"},
		"dynamic binary":  {"-out", out, interpreted(t)},
		"other processor": {"-out", out, build(t, "riscv64")},
	} {
		t.Run(name, func(t *testing.T) {
			require.Error(t, run(args))
			left, err := filepath.Glob(filepath.Join(filepath.Dir(out), "*"))
			require.NoError(t, err)
			require.Empty(t, left, "nothing is left where it failed")
		})
	}
	require.ErrorIs(t, run([]string{"-out", out, interpreted(t)}), errNotStatic)
}

// interpreted is a binary that the dynamic linker has to start.
func interpreted(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"/bin/sh", "/usr/bin/env", "/bin/ls"} {
		content, err := os.ReadFile(name)
		if err == nil {
			_, err = architecture(content)
		}
		if errors.Is(err, errNotStatic) {
			return name
		}
	}
	t.Fatal("no dynamic binary was found on this machine")
	return ""
}

// build gives a small static binary.
func build(t *testing.T, arch string) string {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	require.NoError(t, os.WriteFile(source, []byte(program), 0o600))
	out := filepath.Join(dir, "program")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", out, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	said, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", said)
	return out
}

// archiveOf makes one image of the binaries.
func archiveOf(t *testing.T, binaries ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "dist", "image.tar")
	require.NoError(t, run(append([]string{"-out", out}, binaries...)))
	return out
}

type archive map[string][]byte

type manifest struct {
	at     descriptor
	config struct {
		Architecture string
		Config       struct {
			Entrypoint, Env  []string
			User, WorkingDir string
			Labels           map[string]string
		}
		Rootfs struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	files   map[string]*tar.Header
	content map[string][]byte
	diff    string
}

func read(t *testing.T, file string) archive {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	_, content := untar(t, f)
	return content
}

func untar(t *testing.T, r io.Reader) (map[string]*tar.Header, map[string][]byte) {
	t.Helper()
	headers, content := map[string]*tar.Header{}, map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return headers, content
		}
		require.NoError(t, err)
		headers[h.Name] = h
		content[h.Name], err = io.ReadAll(tr)
		require.NoError(t, err)
	}
}

func (a archive) get(t *testing.T, d descriptor, into any) {
	t.Helper()
	content, ok := a[path.Join("blobs/sha256", strings.TrimPrefix(d.Digest, "sha256:"))]
	require.True(t, ok, d.Digest)
	require.Len(t, content, d.Size)
	require.NoError(t, json.Unmarshal(content, into))
}

// manifests are those of all architectures.
func (a archive) manifests(t *testing.T) []manifest {
	t.Helper()
	var list struct{ Manifests []descriptor }
	require.NoError(t, json.Unmarshal(a["index.json"], &list))
	require.Len(t, list.Manifests, 1)
	require.Equal(t, "localhost/mobula:dev", list.Manifests[0].Annotations["io.containerd.image.name"])
	require.Equal(t, "dev", list.Manifests[0].Annotations["org.opencontainers.image.ref.name"])
	if list.Manifests[0].MediaType == mediaIndex {
		a.get(t, list.Manifests[0], &list)
	}
	var out []manifest
	for _, d := range list.Manifests {
		var parts struct {
			Config descriptor
			Layers []descriptor
		}
		a.get(t, d, &parts)
		m := manifest{at: d}
		a.get(t, parts.Config, &m.config)
		require.Len(t, parts.Layers, 1)
		z, err := gzip.NewReader(bytes.NewReader(a["blobs/sha256/"+strings.TrimPrefix(parts.Layers[0].Digest, "sha256:")]))
		require.NoError(t, err)
		layer, err := io.ReadAll(z)
		require.NoError(t, err)
		m.diff = strings.TrimPrefix(digest(layer), "sha256:")
		m.files, m.content = untar(t, bytes.NewReader(layer))
		out = append(out, m)
	}
	return out
}
