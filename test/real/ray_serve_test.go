//go:build real

package real

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/test/fleet"
)

// TestRayServe: applications of Ray Serve serve beside a fleet's engines. The fleet deploys its own, and those of others
// stay as they are.
func TestRayServe(t *testing.T) {
	c, binary := startRay(t, rayOptions{}), build(t)
	code, err := filepath.Abs("testdata")
	require.NoError(t, err)
	c.python(fmt.Sprintf(`
import sys; sys.path.insert(0, %q)
import ray; from ray import serve
ray.init(log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": %[1]q}})
serve.start(http_options={"host": "0.0.0.0", "port": 8000})
import serve_app
serve.run(serve_app.imperative, name="run", route_prefix="/run")
`, code))
	theirs := func(prefix string) string {
		return fmt.Sprintf(`{"name":"theirs","route_prefix":%q,"import_path":"serve_app:build","args":{"model":"theirs"},
			"runtime_env":{"env_vars":{"PYTHONPATH":%q}},"deployments":[{"name":"OpenAI","health_check_period_s":2.0}]}`, prefix, code)
	}
	mine := func(text string) string {
		return fmt.Sprintf(`{name: mine, config: {import_path: "serve_app:build", args: {model: mine, text: %s},
    runtime_env: {env_vars: {PYTHONPATH: %q}}, deployments: [{name: OpenAI, health_check_period_s: 3}]}}`, text, code)
	}
	file := func(serve string) string { return c.file("serve: ["+serve+"], ", simModel(binary, "1", "")) }

	c.serveDeploy(theirs("/"))
	f := c.fleet(t, binary, file("{name: theirs}"))
	f.AwaitSays("theirs", "Hello from Ray Serve.")
	f.AwaitReady(fleet.Model, 1)
	f.AwaitServes("chat", f.Ready(fleet.Model)[0].ID)

	c.serveDeploy(theirs("/theirs")) // "/" is for one application
	f.Apply(file(mine("one")))
	f.AwaitSays("mine", "one")
	f.Apply(file(mine("two")))
	f.AwaitSays("mine", "two")
	require.Equal(t, []string{"mine", "run", "theirs"}, c.serveNames())
	require.JSONEq(t, theirs("/theirs"), string(c.serveApps()["theirs"].Config))

	f.Kill("control") // the next one knows nothing, and finds its application
	require.NoError(t, os.Remove(filepath.Join(f.Data("control"), "state.db")))
	f.StartControl()
	f.Apply(file(mine("two")))
	f.AwaitReady(fleet.Model, 1)
	f.AwaitSays("mine", "two")
	f.Apply(file("{name: run}"))
	f.Await("our application is gone", func() bool { return !slices.Contains(c.serveNames(), "mine") })
	require.Equal(t, []string{"run", "theirs"}, c.serveNames())
	require.JSONEq(t, theirs("/theirs"), string(c.serveApps()["theirs"].Config))
	for _, path := range []string{"/theirs", "/run"} {
		f.Await(path+" serves", func() bool {
			resp, err := c.client.Get("http://" + c.head.host.IP + ":8000" + path + "/v1/models")
			if err != nil {
				return false
			}
			defer resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		})
	}
	f.Run("delete", "--all", "--yes")
	c.nothingLeft(t)
}

// AwaitSays waits until a model answers with a text.
func (f *rayFleet) AwaitSays(model, text string) {
	f.t.Helper()
	f.Await(model+" says "+text, func() bool {
		a, err := f.Chat(f.t.Context(), model)
		return err == nil && a.Status == http.StatusOK && strings.Contains(a.Body, `"`+text+`"`)
	})
}

// serveDeploy is somebody who deploys an application, and waits until it runs.
func (c *rayLab) serveDeploy(app string) {
	c.t.Helper()
	status, answer, err := c.ask(http.MethodPut, "/api/serve/applications/", `{"applications":[`+app+`]}`)
	require.NoError(c.t, err)
	require.Equal(c.t, http.StatusOK, status, string(answer))
	c.await("the application runs", func() bool { return c.serveApps()["theirs"].Status == "RUNNING" })
}

// serveApp is an application as Ray lists it.
type serveApp struct {
	Status string          `json:"status"`
	Config json.RawMessage `json:"deployed_app_config"`
}

// serveApps are the applications of Ray Serve, by name; none when Ray can't be asked.
func (c *rayLab) serveApps() map[string]serveApp {
	status, body, err := c.ask(http.MethodGet, "/api/serve/applications/", "")
	var answer struct {
		Apps map[string]serveApp `json:"applications"`
	}
	if err != nil || status != http.StatusOK || json.Unmarshal(body, &answer) != nil {
		return nil
	}
	return answer.Apps
}

// serveNames of the applications, sorted.
func (c *rayLab) serveNames() (names []string) {
	c.t.Helper()
	c.await("a list of applications", func() bool {
		names = nil
		for name := range c.serveApps() {
			names = append(names, name)
		}
		return len(names) > 0
	})
	slices.Sort(names)
	return names
}
