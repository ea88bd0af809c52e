package engine

import "syscall"

// groupAttr puts a command into a group of its own, so that a Ctrl-C of the terminal does
// not reach it before us, and has it stop when we die. SIGTERM rather than SIGKILL: only
// this process would get it, and only vLLM's own stop takes its engine core along.
func groupAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
