package kubernetes

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

const kubeconfig = `apiVersion: v1
kind: Config
current-context: here
clusters:
- {name: one, cluster: {server: "http://127.0.0.1:1"}}
- {name: two, cluster: {server: "https://127.0.0.1:2"}}
contexts:
- {name: here, context: {cluster: one, user: me, namespace: llm}}
- {name: there, context: {cluster: two, user: me}}
- {name: nowhere, context: {cluster: gone, user: me}}
users:
- {name: me, user: {token: hidden}}
`

func writeKubeconfig(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

// outside has the test be in no pod, with nothing where kubectl would look.
func outside(t *testing.T) {
	t.Helper()
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("KUBERNETES_SERVICE_PORT", "")
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
}

func TestConnect(t *testing.T) {
	outside(t)
	file := writeKubeconfig(t, kubeconfig)
	for name, tc := range map[string]struct {
		section         mobula.Kubernetes
		host, namespace string
	}{
		"current context":              {mobula.Kubernetes{Kubeconfig: file}, "http://127.0.0.1:1", "llm"},
		"another context":              {mobula.Kubernetes{Kubeconfig: file, Context: "there"}, "https://127.0.0.1:2", "default"},
		"the section's namespace wins": {mobula.Kubernetes{Kubeconfig: file, Namespace: "mine"}, "http://127.0.0.1:1", "mine"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Connect(tc.section, ConnectOptions{Version: "1.2.3"})
			require.NoError(t, err)
			require.Equal(t, tc.host, c.Config.Host)
			require.Equal(t, tc.namespace, c.Namespace)
			require.Equal(t, "mobula/1.2.3", c.Config.UserAgent)
			require.NotNil(t, c.Client)
			require.NotNil(t, c.Dynamic)
			again, err := Connect(tc.section, ConnectOptions{})
			require.NoError(t, err)
			require.True(t, c.same(again))
		})
	}
	t.Run("as kubectl does", func(t *testing.T) {
		t.Setenv("KUBECONFIG", file)
		c, err := Connect(mobula.Kubernetes{}, ConnectOptions{})
		require.NoError(t, err)
		require.Equal(t, "http://127.0.0.1:1", c.Config.Host)
		there, err := Connect(mobula.Kubernetes{Context: "there"}, ConnectOptions{})
		require.NoError(t, err)
		require.Equal(t, "https://127.0.0.1:2", there.Config.Host)
		require.False(t, c.same(there))
	})
}

func TestATokenThatIsRenewedIsNoOtherCluster(t *testing.T) {
	outside(t)
	token := filepath.Join(t.TempDir(), "token")
	file := writeKubeconfig(t, strings.ReplaceAll(kubeconfig, "token: hidden", "tokenFile: "+token))
	connect := func(text string) *Connection {
		require.NoError(t, os.WriteFile(token, []byte(text), 0o600))
		c, err := Connect(mobula.Kubernetes{Kubeconfig: file}, ConnectOptions{})
		require.NoError(t, err)
		return c
	}
	require.True(t, connect("one").same(connect("two")))
}

func TestConnectSaysWhatToDo(t *testing.T) {
	outside(t)
	file := writeKubeconfig(t, kubeconfig)
	for name, tc := range map[string]struct {
		section mobula.Kubernetes
		env     map[string]string
		want    []string
		is      error
	}{
		"nothing anywhere": {
			want: []string{"this is no pod", "none says nothing", "set platform.kubernetes.kubeconfig"}, is: ErrNotConfigured,
		},
		"a pod without a token": {
			env:  map[string]string{"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"},
			want: []string{"no service account's token", "automountServiceAccountToken"}, is: ErrNotConfigured,
		},
		"no such file": {
			section: mobula.Kubernetes{Kubeconfig: "/nowhere/config"}, want: []string{"platform.kubernetes.kubeconfig", "/nowhere/config"}, is: os.ErrNotExist,
		},
		"no YAML": {
			section: mobula.Kubernetes{Kubeconfig: writeKubeconfig(t, "][")}, want: []string{"platform.kubernetes.kubeconfig"},
		},
		"no such context": {
			section: mobula.Kubernetes{Kubeconfig: file, Context: "prod"}, want: []string{"platform.kubernetes.context", `"prod"`, "here, nowhere, there"},
		},
		"a context of no cluster": {
			section: mobula.Kubernetes{Kubeconfig: file, Context: "nowhere"}, want: []string{"platform.kubernetes.kubeconfig", "gone"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range tc.env {
				t.Setenv(k, v)
			}
			_, err := Connect(tc.section, ConnectOptions{})
			require.Error(t, err)
			for _, want := range tc.want {
				require.ErrorContains(t, err, want)
			}
			if tc.is != nil {
				require.ErrorIs(t, err, tc.is)
			}
			require.NotContains(t, err.Error(), "hidden")
		})
	}
}

func TestExplain(t *testing.T) {
	status := func(code int32, reason metav1.StatusReason, message string) error {
		return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message}}
	}
	pods := schema.GroupResource{Resource: "pods"}
	for name, tc := range map[string]struct {
		err         error
		want        string
		unavailable bool
	}{
		"refused connection": {
			err:  &url.Error{Op: "Get", URL: "https://10.0.0.1", Err: syscall.ECONNREFUSED},
			want: "does not answer", unavailable: true,
		},
		"too slow":                {err: fmt.Errorf("list: %w", context.DeadlineExceeded), want: "does not answer", unavailable: true},
		"cut in the middle":       {err: fmt.Errorf("read: %w", io.ErrUnexpectedEOF), want: "does not answer", unavailable: true},
		"unknown certificate":     {err: &url.Error{Op: "Get", URL: "https://a", Err: x509.UnknownAuthorityError{}}, want: "certificate-authority", unavailable: true},
		"unavailable":             {err: status(503, metav1.StatusReasonServiceUnavailable, "x"), want: "can't answer (503)", unavailable: true},
		"without a known reason":  {err: status(502, "", "bad gateway"), want: "can't answer (502)", unavailable: true},
		"too many requests":       {err: apierrors.NewTooManyRequests("slow down", 1), want: "can't answer (429)", unavailable: true},
		"server's timeout":        {err: apierrors.NewTimeoutError("slow", 1), want: "can't answer (504)", unavailable: true},
		"unauthorized":            {err: apierrors.NewUnauthorized("Unauthorized"), want: "renew the credentials", unavailable: true},
		"not found":               {err: apierrors.NewNotFound(pods, "a"), want: `pods "a" not found`},
		"conflict":                {err: apierrors.NewConflict(pods, "a", errors.New("changed")), want: "changed"},
		"something else":          {err: errors.New("object has no name"), want: "object has no name"},
		"the caller's own end":    {err: &url.Error{Op: "Get", URL: "https://a", Err: context.Canceled}, want: "context canceled"},
		"explained already":       {err: fmt.Errorf("x: %w", adapters.ErrUnavailable), want: "x: platform unavailable", unavailable: true},
		"a quota":                 {err: apierrors.NewForbidden(pods, "a", errors.New("exceeded quota: gpus")), want: "exceeded quota: gpus"},
		"a right in a namespace":  {err: apierrors.NewForbidden(pods, "", errors.New(`User "system:serviceaccount:llm:router" cannot list resource "pods" in API group "" in the namespace "team"`)), want: "service account llm/router may not list pods in namespace team: grant it (charts/mobula's role does)"},
		"a right of a user":       {err: status(403, metav1.StatusReasonForbidden, `x is forbidden: User "jane" cannot patch resource "deployments" in API group "apps" in the namespace "team"`), want: "user jane may not patch deployments.apps in namespace team: grant it (charts/mobula's role does)"},
		"a right for the cluster": {err: status(403, metav1.StatusReasonForbidden, `nodes is forbidden: User "jane" cannot list resource "nodes" in API group "" at the cluster scope`), want: "user jane may not list nodes in the whole cluster: grant it (charts/mobula's role does)"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Explain(fmt.Errorf("wrapped: %w", tc.err))
			require.ErrorContains(t, err, tc.want)
			require.Equal(t, tc.unavailable, errors.Is(err, adapters.ErrUnavailable))
			require.ErrorIs(t, err, tc.err)
		})
	}
	require.NoError(t, Explain(nil))
	var e *RefusedError
	require.ErrorAs(t, Explain(status(403, metav1.StatusReasonForbidden, `User "jane" cannot get resource "pods/log" in API group "" in the namespace "a"`)), &e)
	require.Equal(t, "pods/log", e.Resource)
}

func TestRequestsEndInTime(t *testing.T) {
	t.Parallel()
	stuck := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("body") != "" || r.URL.Query().Get("watch") != "" {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
		}
		select {
		case <-stuck:
		case <-r.Context().Done():
		}
	}))
	defer server.Close()
	defer close(stuck)
	get := func(query string, timeout time.Duration) (*http.Response, error) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+query, http.NoBody)
		require.NoError(t, err)
		return bounded{server.Client().Transport, timeout}.RoundTrip(r)
	}
	_, err := get("/", 20*time.Millisecond)
	require.ErrorIs(t, err, context.DeadlineExceeded, "headers")

	res, err := get("/?body=1", 5*time.Second)
	require.NoError(t, err)
	_, err = res.Body.Read(make([]byte, 1))
	require.ErrorIs(t, err, context.DeadlineExceeded, "body")
	require.NoError(t, res.Body.Close())

	for _, query := range []string{"/?watch=true", "/?follow=true&watch=1"} {
		res, err = get(query, time.Nanosecond)
		require.NoError(t, err, "it goes on for as long as somebody listens")
		require.NoError(t, res.Body.Close())
	}
}

func TestAnUntrustedCertificateIsExplained(t *testing.T) {
	outside(t)
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	defer server.Close()
	file := writeKubeconfig(t, strings.ReplaceAll(kubeconfig, "http://127.0.0.1:1", server.URL))
	c, err := Connect(mobula.Kubernetes{Kubeconfig: file}, ConnectOptions{})
	require.NoError(t, err)
	_, err = c.Client.CoreV1().Pods("a").List(t.Context(), metav1.ListOptions{})
	err = Explain(err)
	require.ErrorIs(t, err, adapters.ErrUnavailable)
	require.ErrorContains(t, err, "certificate-authority")
}

func TestWarningsAreLoggedOnce(t *testing.T) {
	outside(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Warning", `299 - "unknown field \"spec.x\""`)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"kind":"PodList","apiVersion":"v1","items":[]}`)
	}))
	defer server.Close()
	file := writeKubeconfig(t, strings.ReplaceAll(kubeconfig, "http://127.0.0.1:1", server.URL))
	var log strings.Builder
	c, err := Connect(mobula.Kubernetes{Kubeconfig: file}, ConnectOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	require.NoError(t, err)
	for range 3 {
		_, err = c.Client.CoreV1().Pods("a").List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
	}
	require.Equal(t, 1, strings.Count(log.String(), "unknown field"))
}
