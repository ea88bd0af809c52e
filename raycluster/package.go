package raycluster

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"strings"
)

//go:embed launcher/mobula_launcher.py launcher/mobula_engine.py launcher/mobula_guard.py
var launcher embed.FS

// moduleName is the launcher's Python module; the others are its parts.
const moduleName = "mobula_launcher"

// Package gives the launcher as Ray takes packages: a zip, and its name, which follows from its content.
func Package() (name string, content []byte, err error) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, module := range []string{moduleName, "mobula_engine", "mobula_guard"} {
		if err := pack(w, module+".py"); err != nil {
			return "", nil, fmt.Errorf("pack the launcher: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return "", nil, fmt.Errorf("pack the launcher: %w", err)
	}
	sum := sha256.Sum256(b.Bytes())
	return "_ray_pkg_" + hex.EncodeToString(sum[:])[:20] + ".zip", b.Bytes(), nil
}

func pack(w *zip.Writer, file string) error {
	source, err := launcher.ReadFile("launcher/" + file)
	if err != nil {
		return err
	}
	f, err := w.CreateHeader(&zip.FileHeader{Name: file, Method: zip.Deflate}) // without a time: the same bytes each time
	if err != nil {
		return err
	}
	_, err = f.Write(source)
	return err
}

// Entrypoint is the shell command of a launcher job. Without an interpreter it is the Python that the job's supervisor, a
// process of Ray's, runs with: the one on the node's PATH may not have Ray, or another version of it.
func Entrypoint(interpreter string) string {
	run := ` -c 'import ` + moduleName + `; ` + moduleName + `.main()'`
	if interpreter != "" {
		return "exec " + quote(interpreter) + run
	}
	return findInterpreter + `exec "$p"` + run
}

// findInterpreter sets p. The supervisor is the shell's parent and has Ray's library mapped: from beside its interpreter when
// that is a virtual environment's, whose executable the kernel knows only by the one that it links to.
const findInterpreter = `m=/proc/$PPID/maps; p=$(sed -n 's|.* \(/.*\)/lib[0-9]*/python[^/]*/site-packages/ray/_raylet\.so$|\1/bin/python|p' $m 2>/dev/null | head -n 1); ` +
	`[ -x "$p" ] || p=$(grep -q '/ray/_raylet\.so$' $m 2>/dev/null && readlink /proc/$PPID/exe); ` +
	`[ -x "$p" ] || p=python3; `

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
