package raycluster

import (
	"archive/zip"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestThePackageIsNamedByItsContent(t *testing.T) {
	name, content, err := Package()
	require.NoError(t, err)
	require.Regexp(t, `^_ray_pkg_[0-9a-f]{20}\.zip$`, name)
	again, same, err := Package()
	require.NoError(t, err)
	require.Equal(t, name, again)
	require.Equal(t, content, same)
}

func TestThePackageHasEveryModule(t *testing.T) {
	_, content, err := Package()
	require.NoError(t, err)
	r, err := zip.NewReader(bytes.NewReader(content), int64(len(content)))
	require.NoError(t, err)
	packed := map[string]bool{}
	for _, f := range r.File {
		in, err := f.Open()
		require.NoError(t, err)
		got, err := io.ReadAll(in)
		require.NoError(t, err)
		want, err := os.ReadFile(filepath.Join("launcher", f.Name))
		require.NoError(t, err)
		require.Equal(t, string(want), string(got), f.Name)
		packed[f.Name] = true
	}
	for name := range packed {
		source, err := os.ReadFile(filepath.Join("launcher", name))
		require.NoError(t, err)
		for _, m := range regexp.MustCompile(`(?m)(?:^import |^from |")(mobula_\w+)`).FindAllStringSubmatch(string(source), -1) {
			require.True(t, packed[m[1]+".py"], "%s needs %s", name, m[1])
		}
	}
}

// The words of the two languages are the same ones.
func TestTheLauncherSpeaksOurWords(t *testing.T) {
	var source strings.Builder
	for _, name := range []string{"mobula_launcher.py", "mobula_engine.py"} {
		text, err := os.ReadFile(filepath.Join("launcher", name))
		require.NoError(t, err)
		source.Write(text)
	}
	for _, want := range []string{
		"\nVERSION = 1\n", `ORDER = "` + OrderVariable + `"`, `FAILURE_MARK = "` + FailureMark + `"`, "class " + ActorClass + ":",
		`"` + publicationPrefix + `" + json.dumps`,
	} {
		require.Contains(t, source.String(), want)
	}
	require.Equal(t, 1, OrderVersion)
}

// python is a script that stands for an interpreter: it prints its name and its arguments.
func python(t *testing.T, path, name string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\necho \""+name+": $*\"\n"), 0o755))
}

func shell(t *testing.T, command, path string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", command)
	cmd.Env = []string{"PATH=" + path + ":/usr/bin:/bin"}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}

const runs = ": -c import mobula_launcher; mobula_launcher.main()\n"

func TestAGivenInterpreterIsUsed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "it's a python")
	python(t, path, "given")
	require.Equal(t, "given"+runs, shell(t, Entrypoint(path), ""))
}

func TestTheInterpreterOfASupervisorWithoutRayIsThatOfThePath(t *testing.T) {
	dir := t.TempDir()
	python(t, filepath.Join(dir, "python3"), "path")
	require.Equal(t, "path"+runs, shell(t, Entrypoint(""), dir))
}

// This process stands for the supervisor: it has a library mapped that is called as Ray's.
func TestTheInterpreterOfTheSupervisorIsFound(t *testing.T) {
	dir := t.TempDir()
	python(t, filepath.Join(dir, "path", "python3"), "path")
	python(t, filepath.Join(dir, "venv", "bin", "python"), "venv")
	library := filepath.Join(dir, "venv", "lib", "python3.11", "site-packages", "ray", "_raylet.so")
	require.NoError(t, os.MkdirAll(filepath.Dir(library), 0o755))
	require.NoError(t, os.WriteFile(library, make([]byte, 4096), 0o600))
	f, err := os.Open(library)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	mapped, err := syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ, syscall.MAP_PRIVATE)
	require.NoError(t, err)
	defer func() { require.NoError(t, syscall.Munmap(mapped)) }()
	require.Equal(t, "venv"+runs, shell(t, Entrypoint(""), filepath.Join(dir, "path")))
}

func TestTheLaunchersOwnTests(t *testing.T) {
	interpreter, err := exec.LookPath("python3")
	if err != nil {
		t.Log("not run: there is no python3 on PATH")
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, interpreter, "-B", "-W", "ignore::ResourceWarning", "-m", "unittest", "launcher_test")
	cmd.Dir = "launcher"
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "\nOK")
}
