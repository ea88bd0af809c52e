package raycluster

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"strings"
)

//go:embed launcher/mobula_launcher.py
var launcher []byte

// moduleName is the launcher's Python module.
const moduleName = "mobula_launcher"

// Package gives the launcher as Ray takes packages: a zip, and its name, which follows from its content.
func Package() (name string, content []byte, err error) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.CreateHeader(&zip.FileHeader{Name: moduleName + ".py", Method: zip.Deflate}) // without a time: the same bytes each time
	if err == nil {
		_, err = f.Write(launcher)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return "", nil, fmt.Errorf("pack the launcher: %w", err)
	}
	sum := sha256.Sum256(b.Bytes())
	return "_ray_pkg_" + hex.EncodeToString(sum[:])[:20] + ".zip", b.Bytes(), nil
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

// findInterpreter sets p. The supervisor is the shell's parent; it has Ray's library mapped, from beside its interpreter.
const findInterpreter = `p=$(sed -n 's|.* \(/.*\)/lib/python[^/]*/site-packages/ray/_raylet\.so$|\1/bin/python|p' /proc/$PPID/maps 2>/dev/null | head -n 1); ` +
	`[ -x "$p" ] || p=python3; `

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
