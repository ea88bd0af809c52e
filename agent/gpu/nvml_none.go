//go:build !cgo || !linux

package gpu

// openNVML finds no library: it takes cgo, and is a Linux one here.
func openNVML() (library, error) { return nil, errNoLibrary }
