package api

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

func FuzzDecodeQuery(f *testing.F) {
	for _, seed := range []string{"", "after=1&wait=20s", "dry&force=true", "tail=5&follow=1", "source=me%20on%20host", "wait=99h", "a=b", "%zz", "dry=1&dry=1"} {
		f.Add(seed)
	}
	all := params()
	f.Fuzz(func(t *testing.T, raw string) {
		q, err := decodeQuery(raw, all)
		if err != nil {
			if !errors.Is(err, control.ErrInvalid) {
				t.Fatalf("%v is not ErrInvalid", err)
			}
			return
		}
		if q.after < 0 || q.wait < 0 || q.wait > maxWait || q.tail < 0 || q.tail > maxTail || checkText(q.source, maxSource) != nil {
			t.Fatalf("out of bounds: %+v", q)
		}
	})
}

func FuzzDecodeBody(f *testing.F) {
	for _, seed := range []string{"", "{}", `{"replicas":3}`, `{"router":"a","at":"2026-11-22T10:00:00Z","models":[{}]}`, `{"name":"a","clock":"x"}`, `{}{}`, "[", "null"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, into := range []any{&client.ScaleRequest{}, &mobula.Report{}, &agent.Join{}} {
			for _, strict := range []bool{true, false} {
				if err := decodeBody(data, into, strict); err != nil && !errors.Is(err, control.ErrInvalid) {
					t.Fatalf("%v is not ErrInvalid", err)
				}
			}
		}
	})
}

// FuzzModelNames: whatever a model is called, the client's path brings the name to the backend.
func FuzzModelNames(f *testing.F) {
	for _, seed := range []string{"llama", "Qwen/Qwen2.5", "a+b/c d", "%2F", "../x", "模型", "a?b#c", ".", "a//b", "/"} {
		f.Add(seed)
	}
	backend := newFake()
	s := New(Options{Backend: backend, Endpoints: mute{}, Token: secret})
	f.Fuzz(func(t *testing.T, name string) {
		if name == "" || checkText(name, maxName) != nil {
			return
		}
		r := httptest.NewRequest(http.MethodPut, "http://control/v1/models/x/scale", strings.NewReader(`{"replicas":1}`))
		target, err := url.Parse("http://control/v1/models/" + url.PathEscape(name) + "/scale")
		if err != nil {
			t.Fatal(err)
		}
		r.URL = target
		r.Header.Set("Authorization", "Bearer "+secret)
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		calls := backend.takeCalls()
		if w.Code != http.StatusNoContent || len(calls) != 1 || calls[0] != "scale "+name+" 1" {
			t.Fatalf("%q: %d %s, told %q", name, w.Code, w.Body, calls)
		}
	})
}

// FuzzHandler: no request line or body ends in a panic or an error of our own.
func FuzzHandler(f *testing.F) {
	for _, c := range routeCases() {
		f.Add("GET", c.good.path, []byte(c.good.body))
		f.Add("PUT", c.good.path, []byte(c.good.body))
		for _, bad := range c.bad {
			f.Add("POST", bad.path, []byte(bad.body))
		}
	}
	s := New(Options{Backend: newFake(), Endpoints: mute{}, Tokens: &fakeJoin{}, Joiner: &fakeJoin{}, Token: secret})
	s.end() // so that nothing waits
	f.Fuzz(func(t *testing.T, method, target string, body []byte) {
		u, err := url.ParseRequestURI(target)
		if err != nil || strings.ContainsAny(method, " \r\n") {
			return
		}
		r := httptest.NewRequest(http.MethodGet, "http://control/", strings.NewReader(string(body)))
		r.Method, r.URL = method, u
		r.Header.Set("Authorization", "Bearer "+secret)
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if w.Code >= 500 && w.Code != http.StatusServiceUnavailable {
			t.Fatalf("%s %s: %d %s", method, target, w.Code, w.Body)
		}
	})
}
