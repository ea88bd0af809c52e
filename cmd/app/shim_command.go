package app

import (
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
		RunE:   func(cmd *cobra.Command, args []string) error { return shim.Run(cmd.Context(), args[0]) },
	}
}
