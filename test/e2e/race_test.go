//go:build race

package e2e

// raced tells that the tests run with the race detector; then so does the binary.
func raced() bool { return true }
