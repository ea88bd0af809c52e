package ray

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/state"
)

// serveTwin is Ray Serve in memory. It does to configurations what Ray does: it writes numbers in its own way, adds
// fields of its own, takes one application for a route prefix, and replaces all declarative applications at once.
type serveTwin struct {
	API
	running  bool
	apps     map[string]*ServeApp
	settings map[string]any
	puts     []map[string]any // what was put
	away     error
	refuse   error
	lost     bool // the next put comes to pass, and its answer is lost
}

func newServeTwin(apps ...ServeApp) *serveTwin {
	s := &serveTwin{running: true, apps: map[string]*ServeApp{}, settings: map[string]any{
		"proxy_location": "EveryNode", "http_options": map[string]any{"host": "0.0.0.0", "port": 18000},
		"grpc_options": map[string]any{"port": 9000}, "target_capacity": 50.0,
	}}
	for _, a := range apps {
		s.apps[a.Name] = &a
	}
	return s
}

func (s *serveTwin) Serve(context.Context) (*ServeState, error) {
	if s.away != nil {
		return nil, s.away
	}
	at := &ServeState{Running: s.running}
	if !s.running {
		return at, nil
	}
	at.Host, at.Port = "0.0.0.0", 18000
	at.Proxies = []ServeProxy{{"n2", "10.0.0.2", "HEALTHY"}, {"n1", "10.0.0.1", "HEALTHY"}}
	for _, name := range slices.Sorted(maps.Keys(s.apps)) {
		at.Apps = append(at.Apps, *s.apps[name])
	}
	at.Config, _ = json.Marshal(s.settings)
	return at, nil
}

func (s *serveTwin) DeployServe(_ context.Context, config json.RawMessage) error {
	if s.away != nil || s.refuse != nil {
		return errors.Join(s.away, s.refuse)
	}
	var body map[string]any
	if err := json.Unmarshal(config, &body); err != nil {
		return err
	}
	s.puts = append(s.puts, body)
	prefixes, named := map[any]bool{}, map[string]bool{}
	for _, app := range body["applications"].([]any) {
		fields := app.(map[string]any)
		prefix, has := fields["route_prefix"]
		if !has {
			prefix = "/"
		}
		if prefixes[prefix] {
			return errors.New("found duplicate applications for route prefix")
		}
		prefixes[prefix] = true
		name := fields["name"].(string)
		named[name] = true
		if n, is := fields["replicas"].(float64); is {
			fields["replicas"] = fmt.Sprint(n) + " of Ray's" // it is written in another way
		}
		shown, _ := json.Marshal(fields)
		s.apps[name] = &ServeApp{Name: name, RoutePrefix: prefix.(string), Status: "RUNNING", Source: "declarative", Config: shown}
	}
	maps.DeleteFunc(s.apps, func(name string, a *ServeApp) bool { return a.Source == "declarative" && !named[name] })
	s.running, s.settings = true, body
	if s.lost {
		s.lost = false
		return fmt.Errorf("%w: no answer", adapters.ErrUnavailable)
	}
	return nil
}

// declared is an application that somebody else has put.
func declared(name, prefix string) ServeApp {
	return ServeApp{Name: name, RoutePrefix: prefix, Status: "RUNNING", Source: "declarative", Config: json.RawMessage(
		fmt.Sprintf(`{"name":%q,"route_prefix":%q,"import_path":"theirs:build","runtime_env":{"env_vars":{"A":"b<c"}},"deployments":[{"name":"D","health_check_period_s":2.0}]}`, name, prefix))}
}

func imperative(name, prefix string) ServeApp {
	return ServeApp{Name: name, RoutePrefix: prefix, Status: "RUNNING", Source: "imperative"}
}

func adopted(name string) mobula.RayServe {
	return mobula.RayServe{Name: name, Models: []string{"m"}}
}

func ours(name string, replicas int) mobula.RayServe {
	return mobula.RayServe{Name: name, Config: map[string]any{"import_path": "ours:build", "replicas": replicas}}
}

// identity of an application as somebody has made it.
func identity(a *ServeApp) string {
	var config any
	_ = json.Unmarshal(a.Config, &config)
	return fmt.Sprint(a.Source, config)
}

// keeper is a serving with its twin and its store.
type keeper struct {
	*serving
	tb    testing.TB
	twin  *serveTwin
	store state.Store
	logs  *strings.Builder
}

func newKeeper(tb testing.TB, twin *serveTwin) *keeper {
	tb.Helper()
	k := &keeper{tb: tb, twin: twin, store: state.NewInMemory(), logs: &strings.Builder{}}
	k.restart()
	return k
}

// restart is a new control plane on the same store.
func (k *keeper) restart() {
	k.tb.Helper()
	var err error
	k.serving, err = newServe(k.store, "lab", slog.New(slog.NewTextHandler(k.logs, nil)))
	require.NoError(k.tb, err)
}

// look is a round that must be able to ask. It gives URLs of the endpoints, and the problems.
func (k *keeper) look(want ...mobula.RayServe) (urls, problems []string) {
	k.tb.Helper()
	endpoints, problems, err := k.round(k.tb.Context(), k.twin, want)
	require.NoError(k.tb, err)
	for _, e := range endpoints {
		urls = append(urls, e.URL)
	}
	return urls, problems
}

func TestARunningApplicationServesAtEachHealthyProxy(t *testing.T) {
	k := newKeeper(t, newServeTwin(declared("llm", "/"), declared("other", "/other")))
	endpoints, problems, err := k.round(t.Context(), k.twin, []mobula.RayServe{adopted("llm")})
	require.NoError(t, err)
	require.Empty(t, problems)
	require.Empty(t, cmp.Diff([]mobula.Endpoint{
		{ID: "serve-llm-10-0-0-1", URL: "http://10.0.0.1:18000", Models: []string{"m"}, Labels: map[string]string{"ray.io/serve": "llm", "host": "10.0.0.1"}},
		{ID: "serve-llm-10-0-0-2", URL: "http://10.0.0.2:18000", Models: []string{"m"}, Labels: map[string]string{"ray.io/serve": "llm", "host": "10.0.0.2"}},
	}, endpoints))
	require.Empty(t, k.twin.puts, "what runs already is left alone")
}

func TestWhatAnApplicationServesAt(t *testing.T) {
	proxies := []ServeProxy{{"n1", "10.0.0.1", "HEALTHY"}}
	running := []ServeApp{{Name: "llm", RoutePrefix: "/", Status: "RUNNING"}}
	before := []mobula.Endpoint{{ID: "serve-llm-10-0-0-1", URL: "http://10.0.0.1:8000"}}
	with := func(status, message string) []ServeApp {
		return []ServeApp{{Name: "llm", RoutePrefix: "/", Status: status, Message: message}}
	}
	for name, c := range map[string]struct {
		at      ServeState
		before  []mobula.Endpoint
		urls    []string
		problem string
	}{
		"any address":      {at: ServeState{Host: "0.0.0.0", Proxies: proxies, Apps: running}, urls: []string{"http://10.0.0.1:8000"}},
		"any IPv6 address": {at: ServeState{Host: "::", Proxies: []ServeProxy{{"n", "fd00::1", "HEALTHY"}}, Apps: running}, urls: []string{"http://[fd00::1]:8000"}},
		"TLS":              {at: ServeState{TLS: true, Proxies: proxies, Apps: running}, urls: []string{"https://10.0.0.1:8000"}},
		"an address of its own": {
			at:   ServeState{Host: "192.168.0.1", Proxies: append(proxies, ServeProxy{"n2", "10.0.0.2", "HEALTHY"}), Apps: running},
			urls: []string{"http://192.168.0.1:8000"},
		},
		"loopback only":                    {at: ServeState{Host: "127.0.0.1", Proxies: proxies, Apps: running}, problem: "serve start --http-host 0.0.0.0"},
		"a cluster on loopback":            {at: ServeState{Host: "127.0.0.1", Proxies: []ServeProxy{{"n", "127.0.0.1", "HEALTHY"}}, Apps: running}, urls: []string{"http://127.0.0.1:8000"}},
		"no proxy":                         {at: ServeState{Apps: running}, problem: "no healthy HTTP proxy"},
		"a new controller without proxies": {at: ServeState{Apps: running}, before: before, urls: []string{"http://10.0.0.1:8000"}},
		"another route prefix":             {at: ServeState{Proxies: proxies, Apps: []ServeApp{{Name: "llm", RoutePrefix: "/llm", Status: "RUNNING"}}}, problem: `its route_prefix is "/llm"`},
		"no such application":              {at: ServeState{Proxies: proxies, Apps: []ServeApp{{Name: "chat"}}}, before: before, problem: "it has chat"},
		"no application":                   {at: ServeState{Proxies: proxies}, problem: "it has none"},
		"first deployed":                   {at: ServeState{Proxies: proxies, Apps: with("DEPLOYING", "")}, problem: beingDeployed},
		"updated":                          {at: ServeState{Proxies: proxies, Apps: with("DEPLOYING", "")}, before: before, urls: []string{"http://10.0.0.1:8000"}, problem: beingDeployed},
		"update failed":                    {at: ServeState{Proxies: proxies, Apps: with("DEPLOY_FAILED", "Traceback\n  File x\nValueError: no GPU")}, before: before, urls: []string{"http://10.0.0.1:8000"}, problem: "it is DEPLOY_FAILED: ValueError: no GPU"},
		"failed at first":                  {at: ServeState{Proxies: proxies, Apps: with("DEPLOY_FAILED", "no")}, problem: "correct its configuration"},
		"unhealthy":                        {at: ServeState{Proxies: proxies, Apps: with("UNHEALTHY", "replica died")}, urls: []string{"http://10.0.0.1:8000"}, problem: "it is UNHEALTHY: replica died"},
		"being deleted":                    {at: ServeState{Proxies: proxies, Apps: with("DELETING", "")}, before: before, problem: "it is DELETING"},
	} {
		t.Run(name, func(t *testing.T) {
			c.at.Running, c.at.Port = true, 8000
			all, problem := serveEndpoints(&c.at, "llm", c.before)
			var urls []string
			for _, e := range all {
				urls = append(urls, e.URL)
			}
			require.Equal(t, c.urls, urls)
			require.Contains(t, problem, c.problem)
			require.Equal(t, c.problem == "", problem == "", problem)
		})
	}
}

func TestWhatRealRaySaysIsUnderstood(t *testing.T) {
	golden, err := os.ReadFile("testdata/dashboard/serve_get_running.json")
	require.NoError(t, err)
	at, err := decodeServe(golden[bytes.IndexByte(golden, '{'):])
	require.NoError(t, err)
	_, problem := serveEndpoints(at, "vs-demo", nil)
	require.Equal(t, `its route_prefix is "/demo", and requests come for /v1/…: give it the route_prefix "/"`, problem)
	p := planServe(at, []mobula.RayServe{ours("llm", 1)}, nil)
	require.Empty(t, p.problems)
	var put struct {
		HTTP map[string]any    `json:"http_options"`
		Apps []json.RawMessage `json:"applications"`
	}
	require.NoError(t, json.Unmarshal(p.config, &put))
	require.InDelta(t, 18000.0, put.HTTP["port"], 0)
	require.Len(t, put.Apps, 2)
	require.JSONEq(t, string(at.Apps[0].Config), string(put.Apps[1]), "it stays as it is")
	at.Apps[0].RoutePrefix = "/"
	all, problem := serveEndpoints(at, "vs-demo", nil)
	require.Empty(t, problem)
	require.Len(t, all, 1)
	require.Equal(t, "http://10.77.0.1:18000", all[0].URL)
}

func TestEndpointsStayWhileRayCanNotBeAsked(t *testing.T) {
	k := newKeeper(t, newServeTwin(declared("llm", "/")))
	urls, _ := k.look(adopted("llm"))
	require.Len(t, urls, 2)
	k.twin.away = adapters.ErrUnavailable
	endpoints, _, err := k.round(t.Context(), k.twin, []mobula.RayServe{adopted("llm")})
	require.ErrorIs(t, err, adapters.ErrUnavailable)
	require.Len(t, endpoints, 2)
	k.twin.away, k.twin.running = nil, false
	endpoints, _, err = k.round(t.Context(), k.twin, []mobula.RayServe{adopted("llm")})
	require.ErrorIs(t, err, adapters.ErrUnavailable, "Ray says so also when it does not know")
	require.Len(t, endpoints, 2)
	urls, problems := k.look(adopted("llm"))
	require.Empty(t, urls)
	require.Len(t, problems, 1)
	require.Contains(t, problems[0], "Ray Serve application llm: Ray Serve does not run on the cluster")
}

func TestAProblemIsLoggedOnceUntilItChanges(t *testing.T) {
	k := newKeeper(t, newServeTwin(declared("llm", "/llm")))
	for range 3 {
		k.look(adopted("llm"))
	}
	require.Equal(t, 1, strings.Count(k.logs.String(), "its route_prefix is"))
	delete(k.twin.apps, "llm")
	k.look(adopted("llm"))
	require.Equal(t, 1, strings.Count(k.logs.String(), "no such application"))
}

func TestAFleetWithoutApplicationsAsksNothing(t *testing.T) {
	k := newKeeper(t, nil)
	urls, problems := k.look()
	require.Empty(t, urls)
	require.Empty(t, problems)
}

func TestARouterAloneDeploysNothing(t *testing.T) {
	twin := newServeTwin()
	s, err := newServe(nil, "", nil)
	require.NoError(t, err)
	_, problems, err := s.round(t.Context(), twin, []mobula.RayServe{ours("llm", 1)})
	require.NoError(t, err)
	require.Len(t, problems, 1)
	require.Empty(t, twin.puts)
}

func TestAnApplicationIsDeployedUpdatedAndRemovedAndOthersStay(t *testing.T) {
	others := []ServeApp{declared("theirs", "/theirs"), imperative("run", "/run")}
	k := newKeeper(t, newServeTwin(others...))
	left := func() {
		t.Helper()
		for _, o := range others {
			now := k.twin.apps[o.Name]
			require.NotNil(t, now)
			require.Equal(t, identity(&o), identity(now))
		}
	}
	_, problems := k.look(ours("llm", 1))
	require.Equal(t, []string{"Ray Serve application llm: it is being deployed"}, problems)
	urls, problems := k.look(ours("llm", 1))
	require.Len(t, urls, 2)
	require.Empty(t, problems)
	left()
	require.InDelta(t, 50.0, k.twin.puts[0]["target_capacity"], 0)
	require.Equal(t, map[string]any{"host": "0.0.0.0", "port": 18000.0}, k.twin.puts[0]["http_options"])

	for range 3 {
		k.look(ours("llm", 1))
		k.restart()
	}
	require.Len(t, k.twin.puts, 1, "nothing differs")

	k.look(ours("llm", 2))
	k.look(ours("llm", 2))
	require.Len(t, k.twin.puts, 2)
	require.Contains(t, string(k.twin.apps["llm"].Config), "2 of Ray's")
	left()

	k.restart()
	k.look()
	require.Len(t, k.twin.puts, 3)
	require.Nil(t, k.twin.apps["llm"])
	left()
	k.look()
	_, stored, err := k.store.Get(bucketServe, "lab")
	require.NoError(t, err)
	require.False(t, stored, "it is forgotten")
	require.Len(t, k.twin.puts, 3)
}

func TestOurApplicationIsPutBackWhenSomebodyChangesOrRemovesIt(t *testing.T) {
	k := newKeeper(t, newServeTwin())
	k.look(ours("llm", 1))
	k.look(ours("llm", 1))
	k.twin.apps["llm"].Config = json.RawMessage(`{"name":"llm","import_path":"ours:build","replicas":"9"}`)
	k.look(ours("llm", 1))
	require.Len(t, k.twin.puts, 2)
	delete(k.twin.apps, "llm")
	k.look(ours("llm", 1))
	require.Len(t, k.twin.puts, 3)
	k.look(ours("llm", 1))
	require.Len(t, k.twin.puts, 3)
}

func TestRayServeIsStartedWhereItDoesNotRun(t *testing.T) {
	k := newKeeper(t, newServeTwin())
	k.twin.running = false
	_, _, err := k.round(t.Context(), k.twin, []mobula.RayServe{ours("llm", 1)})
	require.ErrorIs(t, err, adapters.ErrUnavailable, "not before it is sure")
	require.Empty(t, k.twin.puts)
	k.look(ours("llm", 1))
	require.Len(t, k.twin.puts, 1)
	require.Len(t, k.twin.puts[0], 1, "with Ray's own settings: %v", k.twin.puts[0])
}

func TestWhatIsSomebodyElsesIsNotReplaced(t *testing.T) {
	hidden := declared("theirs", "/theirs")
	hidden.Config = json.RawMessage(`{"name":"theirs","route_prefix":"/theirs","runtime_env":{"env_vars":{"A":"<redacted>"}}}`)
	unknown := declared("theirs", "/theirs")
	unknown.Config = nil
	for name, c := range map[string]struct {
		there   ServeApp
		problem string
	}{
		"declared":                  {declared("llm", "/"), "that this fleet has not deployed"},
		"by serve run":              {imperative("llm", "/"), "started by serve run"},
		"its route prefix":          {imperative("x", "/"), `application x has the route_prefix "/" already`},
		"its route prefix declared": {declared("x", "/"), `application x has the route_prefix "/" already`},
		"hidden values":             {hidden, "does not show the whole configuration of application theirs"},
		"no configuration":          {unknown, "does not show the whole configuration of application theirs"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKeeper(t, newServeTwin(c.there))
			for range 2 {
				_, problems := k.look(ours("llm", 1))
				require.Len(t, problems, 1)
				require.Contains(t, problems[0], c.problem)
			}
			require.Empty(t, k.twin.puts)
			require.Empty(t, k.ours)
			k.look()
			require.Empty(t, k.twin.puts, "and is not removed")
		})
	}
}

func TestAnApplicationThatTheFleetOnlyUsesFromNowOnStays(t *testing.T) {
	k := newKeeper(t, newServeTwin())
	k.look(ours("llm", 1))
	k.look(ours("llm", 1))
	urls, _ := k.look(adopted("llm"))
	require.Len(t, urls, 2)
	k.look()
	require.NotNil(t, k.twin.apps["llm"])
	require.Len(t, k.twin.puts, 1)
}

func TestAControlPlaneWithoutMemoryKnowsItsApplicationByItsConfiguration(t *testing.T) {
	theirs := ServeApp{Name: "llm", RoutePrefix: "/", Status: "RUNNING", Source: "declarative"}
	theirs.Config = json.RawMessage(`{"logging_config":{"level":"INFO"},"replicas":1.0,"name":"llm","import_path":"ours:build"}`)
	k := newKeeper(t, newServeTwin(theirs))
	_, problems := k.look(ours("llm", 1))
	require.Empty(t, problems)
	require.Empty(t, k.twin.puts)
	k.look()
	require.Nil(t, k.twin.apps["llm"], "it is removed with the fleet's last application")
}

func TestAPutWhoseAnswerIsLostIsRepeated(t *testing.T) {
	k := newKeeper(t, newServeTwin())
	k.twin.lost = true
	_, problems := k.look(ours("llm", 1))
	require.Contains(t, problems[0], "could not be deployed")
	k.restart()
	k.look(ours("llm", 1))
	_, problems = k.look(ours("llm", 1))
	require.Empty(t, problems)
	require.Len(t, k.twin.puts, 2)
}

func TestWhatRayRefusesIsSaidAndNotRepeatedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(t, newServeTwin())
		k.twin.refuse = errors.New("put: 1 validation error for ServeDeploySchema\napplications.0.import_path\n  Field required [type=missing]\n    For further information visit https://errors.pydantic.dev/")
		for range 3 {
			_, problems := k.look(ours("llm", 1))
			require.Equal(t, []string{"Ray Serve application llm: it could not be deployed: validation error for ServeDeploySchema applications.0.import_path Field required [type=missing]"}, problems)
		}
		k.twin.refuse = nil
		k.look(ours("llm", 1))
		require.Empty(t, k.twin.puts)
		k.look(ours("llm", 2))
		require.Len(t, k.twin.puts, 1, "another configuration is another matter")
		k.twin.refuse = errors.New("no")
		k.look(ours("llm", 3))
		require.Contains(t, string(k.twin.apps["llm"].Config), "2 of Ray's")
		k.twin.refuse = nil
		time.Sleep(servePause)
		k.look(ours("llm", 3))
		require.Len(t, k.twin.puts, 2)
	})
}

// TestOthersStay: whatever the fleet wants, whatever fails, what others have deployed is as it was.
func TestOthersStay(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		twin := newServeTwin()
		names := []string{"a", "b", "c", "d"}
		foreign := map[string]string{}
		for i, name := range names {
			app := ServeApp{}
			switch rapid.IntRange(0, 2).Draw(r, "kind of "+name) {
			case 0:
				continue
			case 1:
				app = declared(name, fmt.Sprint("/", i))
			case 2:
				app = imperative(name, fmt.Sprint("/", i))
			}
			twin.apps[name], foreign[name] = &app, identity(&app)
		}
		k := newKeeper(t, twin)
		var want []mobula.RayServe
		for range rapid.IntRange(1, 12).Draw(r, "rounds") {
			if rapid.Bool().Draw(r, "another wish") {
				want = nil
				for i, name := range names {
					w := ours(name, rapid.IntRange(1, 2).Draw(r, "replicas"))
					w.Config["route_prefix"] = fmt.Sprint("/", rapid.IntRange(0, 1).Draw(r, "prefix")*9+i)
					switch rapid.IntRange(0, 2).Draw(r, "wish for "+name) {
					case 1:
						if foreign[name] == "" {
							continue // what is ours and then only used stays for good
						}
						want = append(want, adopted(name))
					case 2:
						want = append(want, w)
					}
				}
			}
			twin.away, twin.refuse, twin.lost = nil, nil, false
			switch rapid.IntRange(0, 5).Draw(r, "trouble") {
			case 0:
				twin.away = adapters.ErrUnavailable
			case 1:
				twin.refuse = errors.New("no")
			case 2:
				twin.lost = true
			case 3:
				k.restart()
			}
			_, _, _ = k.round(t.Context(), twin, want)
			for name, was := range foreign {
				require.NotNil(r, twin.apps[name], name)
				require.Equal(r, was, identity(twin.apps[name]), name)
			}
		}
		// In the end all is as the fleet wants it, and stays so.
		twin.away, twin.refuse, twin.lost = nil, nil, false
		k.restart()
		for range 3 {
			k.look(want...)
		}
		puts := len(twin.puts)
		k.look(want...)
		require.Len(r, twin.puts, puts, "it settles")
		for name := range twin.apps {
			if foreign[name] == "" {
				require.Contains(r, k.ours, name, "nothing of ours is left that the fleet does not have")
			}
		}
		k.look()
		require.Len(r, twin.apps, len(foreign))
	})
}

func FuzzServeRecords(f *testing.F) {
	f.Add(`{"llm":{"config":{"name":"llm","import_path":"ours:build"},"done":true,"shown":{"name":"llm"}}}`, `{"name":"llm"}`)
	f.Add(`{"llm":{}}`, `null`)
	f.Add(`null`, `{"route_prefix":null,"name":7}`)
	f.Add(`[1]`, ``)
	f.Fuzz(func(t *testing.T, stored, shown string) {
		store := state.NewInMemory()
		require.NoError(t, store.Write(state.Change{Bucket: bucketServe, Key: "lab", Value: []byte(stored)}))
		s, err := newServe(store, "lab", nil)
		if err != nil {
			return
		}
		at := &ServeState{Running: true, Apps: []ServeApp{
			{Name: "llm", Status: "RUNNING", RoutePrefix: "/", Source: "declarative", Config: json.RawMessage(shown)},
			imperative("run", "/run"),
		}}
		p := planServe(at, []mobula.RayServe{ours("llm", 1)}, s.ours)
		if p.config == nil {
			return
		}
		var put struct {
			Apps []struct{ Name string } `json:"applications"`
		}
		require.NoError(t, json.Unmarshal(p.config, &put))
		require.NotContains(t, put.Apps, struct{ Name string }{"run"})
	})
}
