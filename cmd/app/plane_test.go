package app

import (
	"context"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
)

// tellingPlane is a control plane whose views come one after the other, and then none until ctx ends.
type tellingPlane struct {
	file  string
	views []control.View
}

func (p *tellingPlane) Fleet(context.Context) ([]byte, error) { return []byte(p.file), nil }

func (p *tellingPlane) View(ctx context.Context, _ int64) (*control.View, error) {
	if len(p.views) == 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	v := p.views[0]
	p.views = p.views[1:]
	return &v, nil
}

func TestARouterFollowsAppliesAndDeletions(t *testing.T) {
	file := `apiVersion: mobula/v1
kind: Fleet
platform: {static: {}}
models:
  - {name: a, replicas: 1, engine: {kind: sim}}
  - {name: b, replicas: 1, engine: {kind: sim}}
  - {name: elsewhere}
`
	view := func(version, generation int64, models ...control.ModelStatus) control.View {
		return control.View{Version: version, Generation: generation, Models: models}
	}
	a, b := control.ModelStatus{Name: "a"}, control.ModelStatus{Name: "b"}
	deleted := control.ModelStatus{Name: "b", Deleted: true}
	p := &tellingPlane{file: file, views: []control.View{
		view(1, 1, a, b),
		view(2, 1, a, control.ModelStatus{Name: "b", Wanted: 3}), // nothing new for a router
		view(3, 1, a, deleted),
		view(4, 1, a), // it is gone
		view(5, 2, a, b),
		view(6, 2),
	}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got [][]string
	err := follow(ctx, p, slog.New(slog.DiscardHandler), func(f *mobula.Fleet) error {
		names := []string{}
		for i := range f.Models {
			names = append(names, f.Models[i].Name)
		}
		if got = append(got, names); len(p.views) == 0 {
			cancel()
		}
		return nil
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, [][]string{{"a", "b", "elsewhere"}, {"a", "elsewhere"}, {"a", "b", "elsewhere"}, {"elsewhere"}}, got)
}
