package app

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
)

func TestAlike(t *testing.T) {
	t.Parallel()
	const (
		head = "apiVersion: mobula/v1\nkind: Fleet\nname: default\n"
		own  = "platform: {kubernetes: {}}\n"
		a    = "  - {name: a, replicas: 1, engine: {kind: sim}}\n"
		b    = "  - {name: b, replicas: 1, engine: {kind: sim}}\n"
		one  = "  - {name: a, replicas: 1, engine: {kind: sim}, loras: [{name: one, source: /l}]}\n"
		both = "  - {name: a, replicas: 1, engine: {kind: sim}, loras: [{name: one, source: /l}, {name: theirs, source: /t}]}\n"
	)
	load := func(text string) *mobula.Fleet {
		f, err := mobula.Load([]byte(head+text), "test")
		require.NoError(t, err)
		return f
	}
	for name, c := range map[string]struct {
		got, want string
		alike     bool
	}{
		"the same":                {own + "models:\n" + a + b, own + "models:\n" + a + b, true},
		"another order":           {own + "models:\n" + b + a, own + "models:\n" + a + b, true},
		"where it is":             {own + "models:\n" + a, "platform: {kubernetes: {namespace: n}}\nmodels:\n" + a, true},
		"another section":         {own + "models:\n" + a, own + "router: {policy: {name: random}}\nmodels:\n" + a, false},
		"a model has not come":    {own + "models:\n" + a, own + "models:\n" + a + b, false},
		"a model is not gone yet": {own + "models:\n" + a + b, own + "models:\n" + a, false},
		"a LoRA has not come":     {own + "models:\n" + a, own + "models:\n" + one, false},
		"a LoRA is not gone yet":  {own + "models:\n" + one, own + "models:\n" + a, false},
	} {
		require.Equal(t, c.alike, alike(load(c.got), load(c.want)), name)
	}
}
