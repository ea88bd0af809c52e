package app

import (
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula/agent/shim"
)

// shimCommand is how an agent starts the parent of an engine. It is not for people.
func (a *app) shimCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "shim DIR",
		Short:  "Keep the engine of a task running (for mobula agent)",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			// There is one for each engine, which mostly waits: what the start of so large a program left behind goes back.
			debug.FreeOSMemory()
			return shim.Run(cmd.Context(), args[0])
		},
	}
}
