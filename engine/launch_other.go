//go:build unix && !linux

package engine

import "syscall"

// groupAttr puts a command into a group of its own. Only Linux can also stop it when we die.
func groupAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
