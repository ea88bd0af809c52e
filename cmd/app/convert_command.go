package app

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula/convert"
)

func (a *app) convertCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "convert SOURCE",
		Short: "Convert the values of another serving stack",
		Long:  `Makes values of charts/mobula out of those of another serving stack. Nothing is contacted.`,
		Example: `  mobula convert production-stack values.yaml -o mobula-values.yaml
  helm install mobula charts/mobula -f mobula-values.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.convertProductionStackCommand())
	return cmd
}

func (a *app) convertProductionStackCommand() *cobra.Command {
	var (
		output string
		strict bool
	)
	cmd := &cobra.Command{
		Use:                   "production-stack FILE... [-o FILE] [--strict]",
		DisableFlagsInUseLine: true,
		Short:                 "Convert values of the vLLM Production Stack's chart",
		Long: `Makes values of charts/mobula out of those of the vLLM Production Stack's chart (vllm-stack). Several files are merged
as Helm does with one -f after the other; "-" is standard input.

The values go to standard output. Standard error has a line for each value that is not just another one here:
  dropped  it has no counterpart, or Mobula has it not yet
  changed  Mobula does it in another way
  action   something has to be done by hand
Secrets are not copied: the values refer to Kubernetes Secrets, and a line says how to make them.

docs/migrating-from-production-stack.md has all values, and how to move without an outage.`,
		Example: `  mobula convert production-stack values.yaml > mobula-values.yaml

  # Several files, as they were given to helm
  mobula convert production-stack base.yaml production.yaml -o mobula-values.yaml

  # What the release has now
  helm get values vllm | mobula convert production-stack -

  # Fail when anything has no counterpart
  mobula convert production-stack --strict values.yaml`,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.convertProductionStack(args, output, strict)
		},
		ValidArgsFunction: cobra.FixedCompletions([]string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt),
	}
	cmd.Flags().StringVarP(&output, "output", "o", "-", `file for the values, "-" for standard output`)
	cmd.Flags().BoolVar(&strict, "strict", false, "exit with 1 when a value is dropped")
	yamlFiles(cmd, "output")
	return cmd
}

func (a *app) convertProductionStack(names []string, output string, strict bool) error {
	if len(names) == 0 {
		return usagef("which values? give their file")
	}
	files := make([]convert.File, 0, len(names))
	for _, name := range names {
		file, err := a.valuesFile(name)
		if err != nil {
			return err
		}
		files = append(files, file)
	}
	result, err := convert.ProductionStack(files...)
	if err != nil {
		return err
	}
	for _, n := range result.Notes {
		_, _ = fmt.Fprintf(a.stderr, "%-8s %s  %s\n", n.Severity, n.Path, n.Text)
	}
	if output == "-" {
		_, err = a.stdout.Write(result.Values)
	} else {
		err = os.WriteFile(output, result.Values, 0o644)
	}
	if err != nil {
		return fmt.Errorf("write the values: %w", err)
	}
	if strict && result.Dropped() {
		return errors.New("values were dropped, which --strict forbids")
	}
	return nil
}

// valuesFile reads a file of values, or standard input for "-".
func (a *app) valuesFile(name string) (convert.File, error) {
	from := a.stdin
	if name == "-" {
		name = "standard input"
	} else {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			return convert.File{}, hinted(fmt.Errorf("%s: there is no such file", name), "helm get values RELEASE prints the values of a release")
		}
		if err != nil {
			return convert.File{}, err
		}
		defer func() { _ = f.Close() }() // it was only read
		from = f
	}
	data, err := io.ReadAll(io.LimitReader(from, convert.MaxFileSize+1))
	if err != nil {
		return convert.File{}, fmt.Errorf("read %s: %w", name, err)
	}
	return convert.File{Name: name, Data: data}, nil
}
