//go:build unix && !linux

package daemon

const abstractNames = false
