package health

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine"
	"github.com/mobula-serve/mobula/router/pick"
	"github.com/mobula-serve/mobula/router/proxy"
)

func TestSnapshotIsThereBeforeRun(t *testing.T) {
	k := New(Options{Models: []mobula.Model{{Name: "m", Aliases: []string{"gpt"}}}})
	require.NotNil(t, k.Snapshot().Lookup("gpt"))
	require.False(t, k.Ready())
}

func TestANewEndpointServesAsSoonAsItHasAnswered(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a", "b")
		require.Equal(t, "a b", f.serving(), "with no time passed")
		require.True(t, f.Ready())
		require.Equal(t, 2, f.logged.count("endpoint up"))
		require.NotZero(t, f.endpoint("a").Hash)
	})
}

func TestReadyWaitsUntilEveryEndpointHasBeenAsked(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.engine("b").set(func(e *fakeEngine) { e.health, e.models = errHangs, errHangs })
		f.report("a", "b")
		require.Equal(t, "a", f.serving())
		require.False(t, f.Ready(), "a would get what is meant for both")
		after(2 * time.Second)
		require.True(t, f.Ready(), "b has had its time")
		f.engine("c").set(func(e *fakeEngine) { e.health, e.models = errHangs, errHangs })
		f.report("a", "b", "c")
		require.True(t, f.Ready(), "a later endpoint takes nothing away")
	})
}

func TestAnEndpointThatStartsIsFoundQuickly(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.engine("a").kill()
		f.report("a")
		after(time.Minute)
		require.Equal(t, "unknown", f.serving())
		require.False(t, f.Ready())
		require.Equal(t, 1, f.logged.count("does not answer yet"), "said once")
		f.engine("a").revive()
		after(newEvery)
		require.Equal(t, "a", f.serving())
	})
}

func TestHealthAndModelsAreAskedInParallel(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.engine("a").set(func(e *fakeEngine) { e.health = errHangs })
		f.report("a")
		require.Equal(t, 1, f.engine("a").count(&f.engine("a").modelses))
		require.False(t, f.endpoint("a").Serving)
		require.Equal(t, cards("m")[0].ID, f.endpoint("a").Cards[0].ID)
	})
}

func TestADeadEndpointIsLeftAtOnceAndTakenBackQuickly(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a", "b")
		f.engine("a").kill()
		f.ends("a", proxy.CauseConnect)
		require.Equal(t, "b", f.serving(), "with no time passed")
		require.Equal(t, 1, f.logged.count("endpoint ejected"))
		require.Equal(t, 1, f.logged.count("reason=connect"))

		after(time.Minute)
		require.Equal(t, "b", f.serving())
		f.engine("a").revive()
		after(downEvery)
		require.Equal(t, "a b", f.serving())
		require.Equal(t, 1, f.logged.count("endpoint readmitted"))
	})
}

func TestADeadEndpointIsFoundWithoutRequests(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a", "b")
		f.engine("a").kill()
		after(time.Second)
		require.Equal(t, "b", f.serving())
	})
}

func TestASilentEndpointIsLeftAfterEjectAfterProbes(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a", "b")
		f.engine("a").set(func(e *fakeEngine) { e.health = errHangs })
		after(2*time.Second + 1500*time.Millisecond) // one probe has failed, another runs
		require.Equal(t, "a b", f.serving())
		after(10 * time.Second)
		require.Equal(t, "b", f.serving())
		require.Equal(t, 1, f.logged.count("reason=health"))
	})
}

func TestRequestsThatSucceedKeepAnEndpointWhoseProbesFail(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a", "b")
		f.engine("a").set(func(e *fakeEngine) { e.health = errSick })
		for range 60 {
			f.ends("a", proxy.CauseOK)
			after(500 * time.Millisecond)
			require.Equal(t, "a b", f.serving())
		}
		after(10 * time.Second) // no requests any more
		require.Equal(t, "b", f.serving())
	})
}

func TestRequestsThatFailEjectAnEndpointWhoseProbesSucceed(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a", "b")
		f.engine("a").set(func(e *fakeEngine) { e.infer = errSick })
		for range 3 {
			require.Equal(t, "a b", f.serving())
			f.ends("a", proxy.CauseStatus)
			after(3 * time.Second) // good probes in between
		}
		require.Equal(t, "b", f.serving())
		after(time.Minute)
		require.Equal(t, "b", f.serving(), "while /health says 200")
		f.engine("a").revive()
		after(hungAtMost)
		require.Equal(t, "a b", f.serving())
	})
}

func TestWhatSaysNothingOfTheEngineDoesNotCount(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a", "b")
		for _, cause := range []proxy.Cause{proxy.CauseBusy, proxy.CauseClientGone, proxy.CauseOK} {
			for range 100 {
				f.ends("a", cause)
			}
		}
		require.Equal(t, "a b", f.serving())

		f.ends("a", proxy.CauseStatus)
		f.ends("a", proxy.CauseStatus)
		f.ends("a", proxy.CauseBusy) // no success either
		f.engine("a").set(func(e *fakeEngine) { e.infer = errHangs })
		f.ends("a", proxy.CauseStatus)
		require.Equal(t, "b", f.serving())
	})
}

func TestAnEngineThatHangsOnInferenceIsLeftWhileHealthIsGood(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.engine("a").set(func(e *fakeEngine) { e.cards, e.infer = cards("l<m", "m"), errHangs })
		f.report("a", "b")
		f.ends("a", proxy.CauseFirstByte)
		require.Equal(t, "b", f.serving())
		after(2 * time.Minute)
		require.Equal(t, "b", f.serving())
		f.engine("a").set(func(e *fakeEngine) { require.Equal(t, "m", e.askedFor, "the base model, not a LoRA") })

		calls := f.engine("a").times(&f.engine("a").infers)
		var gaps []time.Duration
		for i := range calls[1:] {
			gaps = append(gaps, calls[i+1].Sub(calls[i])-slowTimeout)
		}
		s := time.Second
		require.Equal(t, []time.Duration{s, 2 * s, 4 * s, 8 * s, 10 * s}, gaps[:5])
		require.Greater(t, f.engine("a").count(&f.engine("a").healths), 100, "/health is asked all the time")

		f.engine("a").revive()
		after(slowTimeout + stuckAtMost)
		require.Equal(t, "a b", f.serving())
	})
}

func TestASlowEngineIsBackAtOnce(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a", "b")
		f.ends("a", proxy.CauseFirstByte) // its inference probe passes
		require.Equal(t, "a b", f.serving(), "with no time passed")
		require.Equal(t, 1, f.engine("a").count(&f.engine("a").infers))
	})
}

func TestAHungEngineThatIsRestartedIsBackQuickly(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.engine("a").set(func(e *fakeEngine) { e.infer = errHangs })
		f.report("a", "b")
		f.ends("a", proxy.CauseFirstByte)
		after(time.Minute)
		f.engine("a").kill()
		after(time.Minute)
		require.Equal(t, "b", f.serving())
		f.engine("a").revive()
		after(downEvery)
		require.Equal(t, "a b", f.serving())
	})
}

func TestARequestThatSucceedsAtAnEjectedEndpointReadmitsIt(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.engine("a").set(func(e *fakeEngine) { e.infer = errHangs })
		f.report("a")
		earlier := f.endpoint("a")
		f.ends("a", proxy.CauseFirstByte)
		require.Equal(t, "a!", f.serving(), "tried, since nothing else is left")
		require.False(t, f.Ready())

		f.Report(earlier, proxy.Outcome{Cause: proxy.CauseOK}) // sent before it hung
		synctest.Wait()
		require.Equal(t, "a!", f.serving())
		f.ends("a", proxy.CauseOK)
		require.Equal(t, "a", f.serving())
		require.True(t, f.Ready())
	})
}

func TestAProbeFromBeforeTheEjectionIsNoProof(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		slow := make(chan struct{})
		f.report("a", "b")
		f.engine("a").set(func(e *fakeEngine) { e.hold = slow }) // the next probe will have begun before the engine dies
		after(time.Second)
		f.ends("a", proxy.CauseConnect)
		require.Equal(t, "b", f.serving())
		f.engine("a").kill()
		close(slow)
		synctest.Wait()
		require.Equal(t, "b", f.serving())
	})
}

func TestModelsAreLearntAgain(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a")
		before := f.Snapshot()
		after(time.Minute)
		require.Same(t, before, f.Snapshot(), "nothing changed but vLLM's made-up times")

		f.engine("a").set(func(e *fakeEngine) { e.cards = cards("m", "l<m") })
		after(10 * time.Second)
		require.Equal(t, "m", f.Snapshot().Lookup("l").Base)

		f.engine("a").set(func(e *fakeEngine) { e.models = errSick })
		after(time.Minute)
		require.NotNil(t, f.Snapshot().Lookup("l"), "a failed reading changes nothing")

		f.engine("a").set(func(e *fakeEngine) { e.models, e.cards = nil, cards("m") })
		after(10 * time.Second)
		require.Nil(t, f.Snapshot().Lookup("l"), "the engine has unloaded it")
	})
}

func TestModelsAreLearntAgainAfterReadmission(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a")
		f.engine("a").kill()
		after(2 * time.Second)
		require.Equal(t, "a!", f.serving())
		f.engine("a").set(func(e *fakeEngine) { e.cards = cards("other") })
		f.engine("a").revive()
		after(downEvery)
		require.NotNil(t, f.Snapshot().Lookup("other"))
		require.Equal(t, "unknown", f.serving())
	})
}

func TestModelsThatCouldNotBeReadAreTriedAgainSoon(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.engine("a").set(func(e *fakeEngine) { e.models = errSick })
		f.report("a")
		require.Equal(t, "unknown", f.serving())
		f.engine("a").revive()
		after(learnEvery)
		require.Equal(t, "a", f.serving())
	})
}

func TestAMissingAPIKeyIsSaid(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.engine("a").set(func(e *fakeEngine) { e.models = errKey })
		f.report("a")
		after(time.Minute)
		require.Equal(t, 1, f.logged.count("wants an API key"), "once")
		require.Contains(t, f.Statuses()[0].Problem, "401")

		f.engine("a").set(func(e *fakeEngine) { e.models = nil })
		keyed := endpoints("a")
		keyed[0].APIKey = "sk-1"
		f.up <- keyed
		synctest.Wait()
		require.Equal(t, "a", f.serving(), "a new key is tried at once")
		f.engine("a").set(func(e *fakeEngine) { require.Equal(t, mobula.Secret("sk-1"), e.key) })
		require.Empty(t, f.Statuses()[0].Problem)
	})
}

func TestConfiguredModelsStandInForAListThatIsNotShown(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.engine("a").set(func(e *fakeEngine) { e.models = errKey })
		e := endpoints("a")
		e[0].Models = []string{"m"}
		f.up <- e
		synctest.Wait()
		require.Equal(t, "a", f.serving())
	})
}

func TestMetricsAreScraped(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.engine("a").set(func(e *fakeEngine) { e.metrics = engine.Metrics{Running: 2, CacheTokens: 1000} })
		f.report("a")
		require.Equal(t, 1000, f.endpoint("a").CacheTokens)
		m, ok := f.Scraped("a")
		require.True(t, ok)
		require.InDelta(t, 2, m.Running, 0)

		before := f.Snapshot()
		f.engine("a").set(func(e *fakeEngine) { e.metrics.Running = 3 })
		after(5 * time.Second)
		m, _ = f.Scraped("a")
		require.InDelta(t, 3, m.Running, 0)
		require.Same(t, before, f.Snapshot(), "load is no reason for a new snapshot")

		f.engine("a").set(func(e *fakeEngine) { e.scrape = errSick })
		after(time.Minute)
		_, ok = f.Scraped("a")
		require.False(t, ok, "too old")
		require.Equal(t, 1000, f.endpoint("a").CacheTokens)
		_, ok = f.Scraped("nobody")
		require.False(t, ok)
	})
}

func TestEndpointsThatAreGoneAreLeftAtOnce(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a", "b")
		f.report("b")
		require.Equal(t, "b", f.serving())
		probes := f.engine("a").count(&f.engine("a").healths)
		f.report()
		require.Empty(t, f.serving(), "known, though nothing serves it")
		require.NotNil(t, f.Snapshot().Lookup("m"))
		after(time.Minute)
		require.Equal(t, probes, f.engine("a").count(&f.engine("a").healths))
		require.Empty(t, f.Statuses())
	})
}

func TestAModelThatWasRestrictedAwayIsNotKnown(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.engine("a").set(func(e *fakeEngine) { e.cards = cards("m", "secret") })
		e := endpoints("a")
		e[0].Models = []string{"m"}
		f.up <- e
		synctest.Wait()
		f.report()
		require.NotNil(t, f.Snapshot().Lookup("m"))
		require.Nil(t, f.Snapshot().Lookup("secret"))
	})
}

func TestLiveOutlivesItsEndpointWhileRequestsRun(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a", "b")
		a, b := f.endpoint("a").Live, f.endpoint("b").Live
		a.InFlight.Add(1)
		f.report()
		f.report("a", "b")
		require.Same(t, a, f.endpoint("a").Live)
		require.NotSame(t, b, f.endpoint("b").Live)
		f.report("a")
		require.Same(t, a, f.endpoint("a").Live)

		a.InFlight.Add(-1)
		f.report()
		f.report("a")
		require.NotSame(t, a, f.endpoint("a").Live)
	})
}

func TestAnotherAddressIsAnotherServerWithTheSameRequests(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a")
		live := f.endpoint("a").Live
		f.engine("b").kill()
		f.up <- []mobula.Endpoint{{ID: "a", URL: url("b")}}
		synctest.Wait()
		require.False(t, f.endpoint("a").Serving)
		require.Same(t, live, f.endpoint("a").Live)
		f.engine("b").revive()
		after(newEvery)
		require.Equal(t, "a", f.serving())
		f.ends("a", proxy.CauseConnect)
		require.Equal(t, "a!", f.serving(), "reports reach the new one")
	})
}

// A replica that its platform moves keeps its ID: what there was at the former address is forgotten.
func TestRequestsToAFormerAddressSayNothingOfTheNewOne(t *testing.T) {
	for name, before := range map[string]proxy.Cause{"that was in order": proxy.CauseOK, "that was ejected": proxy.CauseConnect} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(f *fleet) {
				t := f.t
				f.report("a", "c")
				after(6 * time.Second)
				_, known := f.Scraped("a")
				require.True(t, known)
				former := f.endpoint("a")
				f.engine("a").kill()
				f.ends("a", before)
				f.engine("b").set(func(e *fakeEngine) { e.scrape = errSick })
				f.up <- []mobula.Endpoint{{ID: "a", URL: url("b")}, {ID: "c", URL: url("c")}}
				synctest.Wait()
				require.Equal(t, "a c", f.serving())
				require.Equal(t, url("b"), f.endpoint("a").URL)
				require.False(t, f.endpoint("a").Live.Ejected.Load())
				_, known = f.Scraped("a")
				require.False(t, known, "those were of the former one")

				for _, cause := range []proxy.Cause{proxy.CauseConnect, proxy.CauseIdle, proxy.CauseFirstByte, proxy.CauseOK} {
					f.Report(former, proxy.Outcome{Cause: cause})
				}
				f.Overdue(former)
				after(3 * time.Second)
				require.Equal(t, "a c", f.serving())
				require.Zero(t, f.engine("b").count(&f.engine("b").infers), "nobody has doubted it")
				calls := f.engine("a").count(&f.engine("a").healths)
				after(time.Minute)
				require.Equal(t, calls, f.engine("a").count(&f.engine("a").healths), "the former one is left alone")
			})
		})
	}
}

func TestDrainAndLabelsChangeWithoutAPause(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a", "b")
		before := f.endpoint("a")
		changed := endpoints("a", "b")
		changed[0].Draining, changed[0].Labels = true, map[string]string{"zone": "x"}
		f.up <- changed
		synctest.Wait()
		require.Equal(t, "b", f.serving())
		require.Equal(t, "x", f.endpoint("a").Labels["zone"])
		require.Nil(t, before.Labels, "an old snapshot does not change")
		f.report("a", "b")
		require.Equal(t, "a b", f.serving())
	})
}

func TestAnIDReportedTwiceIsOneEndpoint(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a", "a")
		require.Equal(t, "a", f.serving())
		require.Equal(t, 1, f.logged.count("reported twice"))
	})
}

func TestAClosedDiscoveryKeepsTheLastState(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a")
		close(f.up)
		after(time.Minute)
		require.Equal(t, "a", f.serving())
	})
}

func TestUpdateChangesPaceAndAliases(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a")
		f.Update(mobula.Health{Interval: mobula.Duration(time.Minute)}, []mobula.Model{{Name: "m", Aliases: []string{"gpt"}}})
		synctest.Wait()
		require.Same(t, f.Snapshot().Lookup("m"), f.Snapshot().Lookup("gpt"))
		after(time.Minute)
		before := f.engine("a").count(&f.engine("a").healths)
		after(10 * time.Minute)
		require.LessOrEqual(t, f.engine("a").count(&f.engine("a").healths)-before, 14)

		f.Update(mobula.Health{Interval: mobula.Duration(time.Second)}, nil)
		before = f.engine("a").count(&f.engine("a").healths)
		after(10 * time.Second)
		require.GreaterOrEqual(t, f.engine("a").count(&f.engine("a").healths)-before, 9, "no need to wait for the minute to end")
		require.Nil(t, f.Snapshot().Lookup("gpt"))
	})
}

func TestOnChangeSeesEachSnapshot(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a")
		n := *f.changes
		require.Positive(t, n)
		f.ends("a", proxy.CauseConnect)
		require.Equal(t, n+1, *f.changes)
	})
}

func TestManyEndpointsDoNotProbeInStep(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		var ids []string
		for i := range 100 {
			id := fmt.Sprint("e", i)
			ids = append(ids, id)
			f.engines[url(id)] = &fakeEngine{cards: cards("m")}
		}
		f.report(ids...)
		after(time.Minute)
		var late []time.Time
		for _, id := range ids {
			late = append(late, f.engine(id).times(&f.engine(id).healths)[30:]...)
		}
		slices.SortFunc(late, time.Time.Compare)
		most := 0
		for i, j := 0, 0; j < len(late); j++ {
			for late[j].Sub(late[i]) > 10*time.Millisecond {
				i++
			}
			most = max(most, j-i+1)
		}
		require.Less(t, most, 40, "of 100 within 10 ms")
	})
}

func TestMetricsOfTheRoom(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a", "b")
		f.engine("a").kill()
		f.ends("a", proxy.CauseConnect)
		f.engine("b").set(func(e *fakeEngine) { e.infer = errHangs })
		f.ends("b", proxy.CauseIdle)
		require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(`
# HELP mobula_router_ejections_total Times an endpoint was taken out of service, by what was wrong with it.
# TYPE mobula_router_ejections_total counter
mobula_router_ejections_total{endpoint="a",reason="connect"} 1
mobula_router_ejections_total{endpoint="b",reason="idle_timeout"} 1
# HELP mobula_router_endpoint_up Whether an endpoint is in service: 1, or 0 while it is ejected or has never answered.
# TYPE mobula_router_endpoint_up gauge
mobula_router_endpoint_up{endpoint="a"} 0
mobula_router_endpoint_up{endpoint="b"} 0
`)))
		gone := f.endpoint("a")
		f.report("b")
		f.Report(gone, proxy.Outcome{Cause: proxy.CauseConnect})
		n, err := testutil.GatherAndCount(r)
		require.NoError(t, err)
		require.Equal(t, 2, n, "series go with their endpoint")
	}, func(o *Options) { o.Registerer = r })
}

func TestKnownModelsAreBounded(t *testing.T) {
	var k known
	for i := range 2 * maxKnown {
		k.add(fmt.Sprint("m", i))
		k.add("often")
	}
	require.Len(t, k.names, maxKnown)
	require.Contains(t, k.names, "often")
	require.Contains(t, k.names, fmt.Sprint("m", 2*maxKnown-1))
	require.NotContains(t, k.names, "m0")
}

func TestDefaultsAreTheFleetFiles(t *testing.T) {
	require.Equal(t, mobula.Default().Router.Health, withDefaults(mobula.Health{}))
	odd := mobula.Health{Interval: -1, Timeout: -1, EjectAfter: -1, ModelsInterval: -1, MetricsInterval: -1}
	require.Positive(t, withDefaults(odd).EjectAfter)
	require.Positive(t, withDefaults(odd).Interval)
}

func BenchmarkReport(b *testing.B) {
	for _, n := range []int{4, 1000} {
		k := New(Options{})
		all := &members{byID: map[string]*member{}, byLive: map[*pick.Live]*member{}}
		var list []*pick.Endpoint
		for range n {
			m := &member{keeper: k, live: &pick.Live{}, machine: machine{state: stateUp}}
			m.calm.Store(true)
			all.byLive[m.live] = m
			list = append(list, m.endpoint())
		}
		k.members.Store(all)
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					k.Report(list[i%n], proxy.Outcome{Cause: proxy.CauseOK, Status: 200})
				}
			})
		})
	}
}
