package ctl
import "github.com/spf13/cobra"
func (c *ctl) topCommand() *cobra.Command { return &cobra.Command{Use: "top", RunE: func(*cobra.Command, []string) error { return nil }} }
