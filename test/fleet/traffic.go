//go:build linux

package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/stretchr/testify/require"
)

// Traffic is clients that ask one after the other, each waiting for its answer.
type Traffic struct {
	f      *Fleet
	cancel context.CancelFunc
	wg     sync.WaitGroup
	good   atomic.Int64
	mu     sync.Mutex
	bad    []string
}

const answerTokens = 20

// Traffic starts n clients of a model. With streams every second request is one.
func (f *Fleet) Traffic(model string, n int, streams bool) *Traffic {
	return f.TrafficOf(model, n, streams, "")
}

// TrafficOf is Traffic whose prompts, each another one, end alike.
func (f *Fleet) TrafficOf(model string, n int, streams bool, end string) *Traffic {
	ctx, cancel := context.WithCancel(context.Background())
	t := &Traffic{f: f, cancel: cancel}
	for i := range n {
		t.wg.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				if err := f.Ask(ctx, model, fmt.Sprintf("%d-%d %s", i, k, end), streams && k%2 == 1); err == nil {
					t.good.Add(1)
				} else if ctx.Err() == nil {
					t.mu.Lock()
					t.bad = append(t.bad, err.Error())
					t.mu.Unlock()
				}
			}
		})
	}
	f.t.Cleanup(func() { cancel(); t.wg.Wait() })
	return t
}

// Ask sends one request and checks that the answer is whole.
func (f *Fleet) Ask(ctx context.Context, model, prompt string, stream bool) error {
	_, err := f.ask(ctx, model, prompt, stream)
	return err
}

// AwaitServes waits until a replica answers requests for the model.
func (f *Fleet) AwaitServes(model, replica string) {
	f.t.Helper()
	n := 0
	f.Await(replica+" answers for "+model, func() bool {
		n++
		from, err := f.ask(f.t.Context(), model, fmt.Sprint("who answers ", n), false)
		return err == nil && from == replica
	})
}

// ask is Ask, and gives the replica that answered.
func (f *Fleet) ask(ctx context.Context, model, prompt string, stream bool) (replica string, err error) {
	body := fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":%q}],"max_tokens":%d,"min_tokens":%d,"ignore_eos":true,"stream":%t}`,
		model, prompt, answerTokens, answerTokens, stream)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.URL+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := f.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	text := string(raw)
	switch {
	case err != nil:
		return "", fmt.Errorf("%w after %s", err, text)
	case resp.StatusCode != http.StatusOK:
		return "", fmt.Errorf("%s: %s", resp.Status, text)
	case stream && (!strings.Contains(text, "data: [DONE]") || strings.Contains(text, `data: {"error"`)):
		return "", fmt.Errorf("broken stream: %s", text)
	case stream:
		return resp.Header.Get("X-Mobula-Endpoint"), nil
	}
	var answer struct {
		Usage struct {
			CompletionTokens int `json:"completion_tokens"`
		} `json:"usage"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return "", fmt.Errorf("%w: %s", err, text)
	}
	if answer.Usage.CompletionTokens != answerTokens {
		return "", fmt.Errorf("half an answer: %s", text)
	}
	return resp.Header.Get("X-Mobula-Endpoint"), nil
}

// More waits for so many further good answers: the fleet still serves.
func (t *Traffic) More(n int64) {
	t.f.t.Helper()
	from := t.good.Load()
	t.f.Await(fmt.Sprintf("%d more answers", n), func() bool { return t.good.Load() >= from+n })
}

// End stops the clients. No request may have failed.
func (t *Traffic) End() {
	t.f.t.Helper()
	t.cancel()
	t.wg.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	require.Positive(t.f.t, t.good.Load())
	require.Empty(t.f.t, t.bad, "failed requests beside %d good ones\n%s", t.good.Load(), t.f.logs())
}
