package app

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula/trust"
)

func (a *app) caCommand() *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Make or show the certificate authority of a control plane",
		Long: `A control plane signs the certificates of its agents with an authority of its own, which mobula control makes at
its first start. These commands make it beforehand, or show it.`,
		Example: `  # Before the first start, say to copy it to a stand-by
  mobula ca init --data /var/lib/mobula/control

  mobula ca show --data /var/lib/mobula/control`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&data, "data", dataFolder("control"), "data folder of the control plane")
	cmd.AddCommand(
		&cobra.Command{
			Use: "init", Short: "Make the authority, if there is none yet", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				if _, err := trust.OpenCA(filepath.Join(data, "ca"), "mobula"); err != nil {
					return err
				}
				return a.showCA(data)
			},
		},
		&cobra.Command{
			Use: "show", Short: "Show the authority's certificate", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return a.showCA(data) },
		},
	)
	return cmd
}

// showCA prints what is public of an authority; its key stays where it is.
func (a *app) showCA(data string) error {
	path := filepath.Join(data, "ca", "ca.pem")
	file, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return hinted(fmt.Errorf("no authority in %s", data), "mobula ca init --data %s makes one; so does the first start of mobula control", data)
	}
	if err != nil {
		return err
	}
	block, _ := pem.Decode(file)
	if block == nil {
		return fmt.Errorf("%s: want a PEM certificate", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	c := newConsole(a.stderr)
	c.line("%s", c.dim(fmt.Sprintf("%s: %s, valid until %s", path, cert.Subject.CommonName, cert.NotAfter.UTC().Format(time.DateOnly))))
	_, err = a.stdout.Write(file)
	return err
}
