//go:build !race

package e2e

func raced() bool { return false }
