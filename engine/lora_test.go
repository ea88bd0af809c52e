package engine

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
)

// captured is an exchange with a real engine.
type captured struct {
	Method, Path string
	Request      *string `json:"request_body"`
	Status       int
	Text         string          `json:"response_text"`
	JSON         json.RawMessage `json:"response_json"`
}

func capture(t *testing.T, name string) captured {
	t.Helper()
	b, err := os.ReadFile("testdata/http/" + name + ".json")
	require.NoError(t, err)
	var x captured
	require.NoError(t, json.Unmarshal(b, &x))
	return x
}

func (x *captured) answer(w http.ResponseWriter) {
	w.WriteHeader(x.Status)
	if x.JSON != nil {
		_, _ = w.Write(x.JSON)
		return
	}
	_, _ = io.WriteString(w, x.Text)
}

// replay serves captured exchanges one after the other. What is asked must be what was captured.
func replay(t *testing.T, names ...string) mobula.Endpoint {
	t.Helper()
	next := 0
	t.Cleanup(func() { require.Len(t, names, next, "exchanges") })
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		if next == len(names) {
			t.Errorf("%s %s is one request too many", r.Method, r.URL)
			return
		}
		x := capture(t, names[next])
		next++
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != x.Method || r.URL.Path != x.Path {
			t.Errorf("want %s %s, got %s %s, %v", x.Method, x.Path, r.Method, r.URL, err)
		}
		if x.Request != nil && (!sameJSON(*x.Request, string(body)) || r.Header.Get("Content-Type") != "application/json") {
			t.Errorf("want %s, got %s as %s", *x.Request, body, r.Header.Get("Content-Type"))
		}
		x.answer(w)
	})
}

func sameJSON(a, b string) bool {
	var x, y map[string]any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil || len(x) != len(y) {
		return false
	}
	for k, v := range x {
		if y[k] != v {
			return false
		}
	}
	return true
}

const goldenLoRA = "/srv/fixtures/vllm/m/tiny-lora"

func TestLoRACallsAreAsCaptured(t *testing.T) {
	load := func(name, path string) func(*testing.T, *Client, mobula.Endpoint) error {
		return func(t *testing.T, c *Client, e mobula.Endpoint) error {
			t.Helper()
			return c.LoadLoRA(t.Context(), e, name, path)
		}
	}
	unload := func(t *testing.T, c *Client, e mobula.Endpoint) error {
		t.Helper()
		return c.UnloadLoRA(t.Context(), e, "ad1")
	}
	for name, tc := range map[string]struct {
		exchanges []string
		do        func(*testing.T, *Client, mobula.Endpoint) error
		status    int    // of the error
		message   string // part of the error
		is        error
	}{
		"load":                          {exchanges: []string{"lora_load"}, do: load("ad1", goldenLoRA)},
		"load again from the same path": {exchanges: []string{"lora_load_twice", "models_with_lora"}, do: load("ad1", goldenLoRA)},
		"load what is not there":        {exchanges: []string{"lora_load_missing_path"}, do: load("ad2", "/nonexistent/x"), status: 404, message: "No adapter found for /nonexistent/x"},
		"load into an engine without":   {exchanges: []string{"lora_load_not_enabled"}, do: load("ad1", goldenLoRA), status: 500, message: "--enable-lora", is: ErrUnsupported},
		"unload":                        {exchanges: []string{"lora_unload"}, do: unload},
		"unload what is not there":      {exchanges: []string{"lora_unload_missing"}, do: unload},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t)
			err := tc.do(t, c, replay(t, tc.exchanges...))
			if tc.status == 0 {
				require.NoError(t, err)
				return
			}
			require.Equal(t, tc.status, Status(err), "%v", err)
			require.ErrorContains(t, err, tc.message)
			if tc.is != nil {
				require.ErrorIs(t, err, tc.is)
			}
		})
	}
}

// TestALoRAFromElsewhereIsReplacedInPlace has an engine that has the name from another path.
func TestALoRAFromElsewhereIsReplacedInPlace(t *testing.T) {
	c := newClient(t)
	var bodies []string
	twice, cards, done := capture(t, "lora_load_twice"), capture(t, "models_with_lora"), capture(t, "lora_load")
	e := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			cards.answer(w)
			return
		}
		b, _ := io.ReadAll(r.Body)
		bodies = append(bodies, string(b))
		if len(bodies) == 1 {
			twice.answer(w)
			return
		}
		done.answer(w)
	})
	require.NoError(t, c.LoadLoRA(t.Context(), e, "ad1", "/loras/newer"))
	require.Equal(t, []string{
		`{"lora_name":"ad1","lora_path":"/loras/newer"}`,
		`{"lora_name":"ad1","lora_path":"/loras/newer","load_inplace":true}`,
	}, bodies)
}

func TestSleepCallsAreAsCaptured(t *testing.T) {
	c := newClient(t)
	asleep, err := c.IsSleeping(t.Context(), replay(t, "is_sleeping"))
	require.NoError(t, err)
	require.False(t, asleep)
	asleep, err = c.IsSleeping(t.Context(), replay(t, "is_sleeping2"))
	require.NoError(t, err)
	require.True(t, asleep)
	require.NoError(t, c.Wake(t.Context(), replay(t, "wake_up")))

	x, query := capture(t, "sleep"), ""
	e := serve(t, func(w http.ResponseWriter, r *http.Request) {
		query = r.Method + " " + r.URL.RequestURI()
		x.answer(w)
	})
	require.NoError(t, c.Sleep(t.Context(), e, SleepOffload))
	require.Equal(t, "POST "+x.Path+"&mode=wait", query)
	require.ErrorContains(t, c.Sleep(t.Context(), e, 3), "level 1 or 2, got 3")
}

// TestEnginesWithoutTheRoutesSayWhatIsMissing has an engine that was started without the switches.
func TestEnginesWithoutTheRoutesSayWhatIsMissing(t *testing.T) {
	c := newClient(t)
	x := capture(t, "not_found")
	for name, answers := range map[string]http.HandlerFunc{
		"FastAPI's 404": func(w http.ResponseWriter, _ *http.Request) { x.answer(w) },
		"a bare 404":    answer(http.StatusNotFound, ""),
		"405":           answer(http.StatusMethodNotAllowed, `{"detail":"Method Not Allowed"}`),
	} {
		t.Run(name, func(t *testing.T) {
			e := serve(t, answers)
			for _, err := range []error{
				c.LoadLoRA(t.Context(), e, "a", "/a"),
				c.UnloadLoRA(t.Context(), e, "a"),
			} {
				require.ErrorIs(t, err, ErrUnsupported)
				require.ErrorContains(t, err, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")
			}
			_, asking := c.IsSleeping(t.Context(), e)
			for _, err := range []error{c.Sleep(t.Context(), e, SleepOffload), c.Wake(t.Context(), e), asking} {
				require.ErrorIs(t, err, ErrUnsupported)
				require.ErrorContains(t, err, "--enable-sleep-mode")
			}
		})
	}
}

func TestOddAnswersAboutSleepAreMalformed(t *testing.T) {
	c := newClient(t)
	for name, body := range map[string]string{
		"empty":         "",
		"not JSON":      `{"is_sleeping":`,
		"null":          `{"is_sleeping":null}`,
		"no field":      `{}`,
		"no boolean":    `{"is_sleeping":"yes"}`,
		"not an object": `[true]`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.IsSleeping(t.Context(), serve(t, answer(http.StatusOK, body)))
			require.ErrorIs(t, err, ErrMalformed)
		})
	}
}

func TestRootOfACard(t *testing.T) {
	for raw, want := range map[string]string{
		`{"id":"a","root":"/loras/a"}`: "/loras/a",
		`{"id":"a","root":null}`:       "",
		`{"id":"a"}`:                   "",
		``:                             "",
	} {
		require.Equal(t, want, Root(mobula.Card{ID: "a", Raw: []byte(raw)}), raw)
	}
}
