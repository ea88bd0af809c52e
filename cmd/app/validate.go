package app

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula"
)

// maxFleetInput bounds a fleet read from standard input: one byte more than a fleet file
// may have, so that the loader sees that it is too large.
const maxFleetInput = 4<<20 + 1

func (a *app) validateCommand() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:                   "validate -f FILE...",
		DisableFlagsInUseLine: true,
		Short:                 "Check fleet files",
		Long: `Checks fleet files and says what is wrong in them and where. Nothing is contacted.
Exits with 0 when all are good.`,
		Example: `  mobula validate -f fleet.yaml

  # Several, or standard input
  mobula validate -f a.yaml -f b.yaml
  helm template . | mobula validate -f -`,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.validate(append(files, args...))
		},
		ValidArgsFunction: cobra.FixedCompletions([]string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt),
	}
	cmd.Flags().StringArrayVarP(&files, "file", "f", nil, `fleet file, "-" for standard input; may be repeated`)
	yamlFiles(cmd, "file")
	return cmd
}

func (a *app) validate(files []string) error {
	if len(files) == 0 {
		return usagef("which fleet? give its file with -f")
	}
	bad := 0
	for _, file := range files {
		name, fleet, err := a.loadFleet(file)
		if err == nil {
			_, _ = fmt.Fprintf(a.stdout, "%s: ok: %s\n", name, describe(fleet))
			continue
		}
		bad++
		_, _ = fmt.Fprintln(a.stderr, fleetError(name, err))
	}
	if bad > 0 {
		return fmt.Errorf("%s not valid", count(bad, "fleet file"))
	}
	return nil
}

// loadFleet reads a fleet from a file, or from standard input for "-".
func (a *app) loadFleet(file string) (name string, fleet *mobula.Fleet, err error) {
	if file != "-" {
		fleet, err = mobula.LoadFile(file)
		return file, fleet, err
	}
	const stdin = "standard input"
	data, err := io.ReadAll(io.LimitReader(a.stdin, maxFleetInput))
	if err != nil {
		return stdin, nil, fmt.Errorf("read %s: %w", stdin, err)
	}
	fleet, err = mobula.Load(data, stdin)
	return stdin, fleet, err
}

// fleetError makes the common mistake with a fleet file helpful.
func fleetError(file string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return hinted(fmt.Errorf("%s: there is no such file", file), "docs/fleet.md shows a complete one; `mobula up` needs none")
	}
	return err
}

// describe sums a fleet up in a line: "2 endpoints, 1 model, policy cost".
func describe(f *mobula.Fleet) string {
	var where string
	switch p := f.Platform; {
	case p.Ray != nil:
		where = "Ray cluster at " + p.Ray.Address
		if n := len(p.Ray.Serve); n > 0 {
			where += " with " + count(n, "Serve application")
		}
	case p.KubeRay.Shares():
		where = "KubeRay, in RayCluster " + p.KubeRay.Shared.Cluster
		if service := p.KubeRay.Shared.Service; service != "" {
			where = "KubeRay, in RayService " + service
		}
	case p.OnKubernetes() != nil:
		where = "Kubernetes"
		if p.KubeRay != nil {
			where = "KubeRay"
		}
		if namespace := p.OnKubernetes().Namespace; namespace != "" {
			where += " in namespace " + namespace
		}
		if n := len(p.OnKubernetes().Discover); n > 0 {
			where += " with " + count(n, "selector") + " for engines of others"
		}
	case p.Static != nil:
		where = count(len(p.Static.Endpoints), "endpoint")
	default:
		where = count(0, "endpoint")
	}
	return where + ", " + count(len(f.Models), "model") + ", policy " + f.Router.Policy.Name
}

// count gives "1 model", "2 models".
func count(n int, noun string) string {
	s := strconv.Itoa(n) + " " + noun
	if n != 1 {
		s += "s"
	}
	return s
}
