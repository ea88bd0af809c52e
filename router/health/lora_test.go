package health

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/router/proxy"
)

// withLoRA has the fleet name one of m.
func withLoRA(o *Options) {
	m := mobula.NewModel("m")
	m.Replicas, m.LoRAs = &mobula.Range{Min: 1, Max: 1}, []mobula.LoRA{{Name: "lora", Source: "/lora"}}
	o.Models = []mobula.Model{m}
}

// has are the endpoints that requests for the LoRA go to.
func (f *fleet) has() (ids []string) {
	for _, e := range f.Snapshot().Lookup("lora").Endpoints {
		ids = append(ids, e.ID)
	}
	return ids
}

func TestALoRAThatIsWaitedForIsFoundSoon(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.engine("c").set(func(e *fakeEngine) { e.cards = cards("other") })
		f.report("a", "b", "c")
		after(time.Minute)
		require.Empty(t, f.has())
		f.engine("b").set(func(e *fakeEngine) { e.cards = cards("m", "lora<m") })
		after(learnEvery)
		require.Equal(t, []string{"b"}, f.has())

		a, c := f.engine("a"), f.engine("c")
		before, others := a.count(&a.modelses), c.count(&c.modelses)
		require.Less(t, others, before/2, "engines of other models are left alone")
		after(time.Minute)
		require.LessOrEqual(t, a.count(&a.modelses)-before, 9, "once it is found nobody hurries")
	}, withLoRA)
}

func TestALoRAThatIsMissedIsLookedForOnAllEnginesOfItsModel(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.engine("a").set(func(e *fakeEngine) { e.cards = cards("m", "lora<m") })
		f.engine("c").set(func(e *fakeEngine) { e.cards = cards("other") })
		f.report("a", "b", "c")
		require.Equal(t, []string{"a"}, f.has())
		f.engine("a").set(func(e *fakeEngine) { e.cards = cards("m") })
		f.engine("b").set(func(e *fakeEngine) { e.cards = cards("m", "lora<m") })
		c := f.engine("c")
		before := c.count(&c.modelses)
		for range 100 {
			f.ends("a", proxy.CauseMissing)
		}
		after(missingAfter)
		require.Equal(t, []string{"b"}, f.has())
		require.Equal(t, "a b", f.serving(), "nothing is wrong with the engine")
		require.Equal(t, before, c.count(&c.modelses))

		b := f.engine("b")
		before = b.count(&b.modelses)
		for range 100 {
			f.ends("b", proxy.CauseMissing)
		}
		after(missingAfter)
		require.LessOrEqual(t, b.count(&b.modelses)-before, 2, "many misses are one reason")
	}, withLoRA)
}

// An engine that goes with a LoRA leaves it known, since another may load it; once the fleet names it no more nobody has to wait.
func TestALoRAThatTheFleetDropsIsForgotten(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		with := f.settings.Load().models
		bare := mobula.NewModel("m")
		bare.Replicas = with[0].Replicas
		f.engine("a").set(func(e *fakeEngine) { e.cards = cards("m", "lora<m") })
		f.report("a", "b")
		f.Update(mobula.Health{}, []mobula.Model{bare})
		synctest.Wait()
		require.Equal(t, []string{"a"}, f.has(), "an engine still has it")
		f.report("b")
		require.Nil(t, f.Snapshot().Lookup("lora"))
		f.Update(mobula.Health{}, with)
		synctest.Wait()
		require.NotNil(t, f.Snapshot().Lookup("lora"))

		f.Update(mobula.Health{}, nil)
		f.report()
		require.Nil(t, f.Snapshot().Lookup("m"), "a model that the fleet drops is forgotten alike")
	}, withLoRA)
}
