// Package e2e tests the mobula binary as a user runs it.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// binaryDir names the folder of the binary that TestMain has built, for this process and
// those that it starts.
const binaryDir = "MOBULA_E2E_DIR"

func TestMain(m *testing.M) {
	os.Exit(withBinary(m.Run))
}

// withBinary builds the binary once for all tests.
func withBinary(run func() int) int {
	dir, err := os.MkdirTemp("", "mobula-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	args := []string{"build", "-o", filepath.Join(dir, "mobula")}
	env := map[string]string{binaryDir: dir}
	if raced() {
		args = append(args, "-race")
		env["GORACE"] = "atexit_sleep_ms=0" // a second for each process otherwise
	}
	build := exec.Command("go", append(args, "../../cmd/mobula")...)
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build mobula:", err)
		return 1
	}
	for name, value := range env {
		if err := os.Setenv(name, value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return run()
}

// binary gives the path of the mobula binary.
func binary(t *testing.T) string {
	t.Helper()
	return filepath.Join(os.Getenv(binaryDir), "mobula")
}
