package app

import (
	"context"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
)

// tellingPlane is a control plane whose settings come one after the other, and then none until ctx ends.
type tellingPlane []control.Settings

func (p *tellingPlane) Settings(ctx context.Context, after int64) (*control.Settings, error) {
	if len(*p) == 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	s := (*p)[0]
	*p = (*p)[1:]
	s.Version = after + 1
	return &s, nil
}

func TestARouterFollowsAppliesAndDeletions(t *testing.T) {
	const head = "apiVersion: mobula/v1\nkind: Fleet\nplatform: {static: {}}\nmodels:\n"
	const a, b = "  - {name: a, replicas: 1, engine: {kind: sim}}\n", "  - {name: b, replicas: 1, engine: {kind: sim}}\n"
	const elsewhere = "  - {name: elsewhere}\n"
	p := &tellingPlane{
		{}, // before the first apply
		{File: head + a + b + elsewhere},
		{File: head + a + b + elsewhere, Deleted: []string{"b"}},
		{File: "kind: of broken"},
		{File: head + b + elsewhere},
		{File: head + b + elsewhere, Deleted: []string{"b"}},
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got [][]string
	err := follow(ctx, p, slog.New(slog.DiscardHandler), func(f *mobula.Fleet) error {
		names := []string{}
		for i := range f.Models {
			names = append(names, f.Models[i].Name)
		}
		if got = append(got, names); len(*p) == 0 {
			cancel()
		}
		return nil
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, [][]string{{"a", "b", "elsewhere"}, {"a", "elsewhere"}, {"b", "elsewhere"}, {"elsewhere"}}, got)
}
