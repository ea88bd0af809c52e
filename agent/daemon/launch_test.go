//go:build unix

package daemon

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
)

func TestTheCommandOfASimulatedEngine(t *testing.T) {
	d := &Daemon{o: Options{Exe: "/opt/agent/mobula", Host: "10.0.0.7"}}
	for name, c := range map[string]struct {
		engine mobula.Engine
		want   []string
	}{
		"is the agent's own program":       {mobula.Engine{Kind: "sim"}, []string{"/opt/agent/mobula"}},
		"unless the model names it itself": {mobula.Engine{Kind: "sim", Command: []string{"nice", "/opt/other/mobula"}}, []string{"nice", "/opt/other/mobula"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.engine.Args = []string{"--tokens", "9"}
			argv, _ := d.command(&agent.Task{Model: mobula.Model{Name: "m", Engine: c.engine}}, 4000)
			require.Equal(t, append(c.want, "sim", "--model", "m", "--host", "10.0.0.7", "--port", "4000", "--tokens", "9"), argv)
		})
	}
}
