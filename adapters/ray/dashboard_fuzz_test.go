package ray

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"

	"github.com/mobula-serve/mobula/raycluster"
)

// seed adds the bodies of all golden answers.
func seed(f *testing.F) {
	f.Helper()
	files, err := filepath.Glob("testdata/dashboard/*")
	require.NoError(f, err)
	require.NotEmpty(f, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(f, err)
		_, body, _ := strings.Cut(string(text), "-> HTTP ")
		_, body, _ = strings.Cut(body, "\n")
		f.Add([]byte(body))
	}
	for _, text := range []string{
		"", "null", "[]", "[1,null,{}]", `{"data":{"result":{"result":[null,1,"x",{},{"actor_id":7,"ray_namespace":"mobula"}]}}}`,
		`{"data":{"result":{"result":[{"ray_namespace":"mobula","actor_id":"a","death_cause":{"creation_task_failure_context":{"formatted_exception_string":"x ` +
			raycluster.FailureMark + `why"}}}]}}}`,
		`{"data":{"result":{"result":[{"name":"mobula/a/b","bundles":[null,{"node_id":3,"unit_resources":[1],"label_selector":null}]}]}}}`,
		`{"controller_info":{"a":1},"http_options":{"port":"x"},"applications":{"a":null,"b":{"deployed_app_config":null}}}`,
		`[{"type":"SUBMISSION","submission_id":"a","metadata":{"a":{"b":1}},"start_time":1e99}]`,
	} {
		f.Add([]byte(text))
	}
}

func FuzzDashboardState(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		rows, size, err := openList(body)
		if err != nil {
			require.True(t, isUnavailable(err))
			return
		}
		for _, a := range decodeActors(rows, "mobula") {
			require.NotEmpty(t, a.ID)
			require.LessOrEqual(t, len(a.Death), dashboardMaxDeath)
			require.NotContains(t, a.Death, "\n"+raycluster.FailureMark)
		}
		for _, g := range decodeGroups(rows) {
			_, _, _, ok := raycluster.ParseName(g.Name)
			require.True(t, ok)
			require.NotEqual(t, "REMOVED", g.State)
		}
		require.LessOrEqual(t, int64(len(decodeNodes(rows))), size.given)
		require.Equal(t, size.whole(), size.partial("things") == "")
	})
}

func FuzzDashboardJobs(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		jobs, err := decodeJobs(body, "v")
		require.True(t, err == nil || isUnavailable(err))
		for _, j := range jobs {
			require.True(t, strings.HasPrefix(j.ID, "v"))
		}
	})
}

func FuzzDashboardServe(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := decodeServe(body)
		if err != nil {
			return
		}
		require.Equal(t, s.Running, gjson.ValidBytes(s.Config) && len(s.Config) > 0)
		for _, p := range s.Proxies {
			require.Equal(t, "HEALTHY", p.Status)
		}
	})
}

func FuzzDashboardText(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		said := dashboardText(body)
		require.NotEmpty(t, said)
		require.LessOrEqual(t, len(said), dashboardMaxText+len("…"))
		require.NotContains(t, said, "\n")
		if utf8.Valid(body) {
			require.True(t, utf8.ValidString(said))
		}
		require.LessOrEqual(t, len(keepEnds(string(body), 100)), 101)
	})
}

func FuzzDashboardLog(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		d := &Dashboard{}
		err := d.noLog("read", &http.Response{StatusCode: http.StatusInternalServerError}, body)
		require.Error(t, err)
		log := newDashboardLog(t.Context(), func() {}, io.NopCloser(strings.NewReader(string(body))))
		text, err := io.ReadAll(log)
		require.NoError(t, err)
		var want strings.Builder
		for line := range strings.Lines(string(body)) {
			if !isRaysLine([]byte(line)) {
				want.WriteString(line)
			}
		}
		require.Equal(t, want.String(), string(text))
	})
}
