package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/mobula-serve/mobula"
)

// ErrUnsupported is returned when an engine was not started with what a call needs.
var ErrUnsupported = errors.New("the engine does not offer it")

// loraTimeout bounds loading when the context has no deadline: the weights may come from far away.
const loraTimeout = 5 * time.Minute

// What an engine must be started with to have the routes.
const (
	loraNeeds  = "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
	sleepNeeds = "start it with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1"
)

// LoadLoRA has the engine serve the LoRA at path, a folder on its host or a name on the Hugging Face hub, as name.
// One that is there already is success when it came from the same path, and is replaced in place when not. Without a
// deadline in ctx it takes at most 5 minutes. It fails with ErrUnsupported on an engine that loads no LoRAs, and
// with a *StatusError that tells why the engine refuses.
func (c *Client) LoadLoRA(ctx context.Context, e mobula.Endpoint, name, path string) error {
	ctx, cancel := bound(ctx, loraTimeout)
	defer cancel()
	err := c.postLoRA(ctx, e, loadPath, loraRequest{Name: name, Path: path})
	if !alreadyLoaded(err) {
		return err
	}
	cards, listErr := c.Models(ctx, e)
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	for _, card := range cards {
		if card.ID == name && Root(card) == path {
			return nil
		}
	}
	return c.postLoRA(ctx, e, loadPath, loraRequest{Name: name, Path: path, InPlace: true})
}

// UnloadLoRA has the engine forget the LoRA. One that is not there is success. It fails with ErrUnsupported on an
// engine that loads no LoRAs.
func (c *Client) UnloadLoRA(ctx context.Context, e mobula.Endpoint, name string) error {
	err := c.postLoRA(ctx, e, unloadPath, loraRequest{Name: name})
	if Status(err) == http.StatusNotFound && !errors.Is(err, ErrUnsupported) {
		return nil
	}
	return err
}

// Root gives the path or name that the weights of a model or LoRA were loaded from, empty when the engine does not say.
func Root(card mobula.Card) string {
	if root := gjson.GetBytes(card.Raw, "root"); root.Type == gjson.String {
		return root.Str
	}
	return ""
}

const (
	loadPath   = "/v1/load_lora_adapter"
	unloadPath = "/v1/unload_lora_adapter"
)

type loraRequest struct {
	Name    string `json:"lora_name"`
	Path    string `json:"lora_path,omitempty"`
	InPlace bool   `json:"load_inplace,omitempty"`
}

func (c *Client) postLoRA(ctx context.Context, e mobula.Endpoint, path string, r loraRequest) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode LoRA request: %w", err)
	}
	err = c.call(ctx, e, http.MethodPost, path, body, func(r *http.Response) error { return only200(path, r) })
	if s, ok := errors.AsType[*StatusError](err); ok && (noRoute(s) || strings.Contains(s.Message, "LoRA is not enabled")) {
		return fmt.Errorf("%w: LoRAs at run time; %s: %w", ErrUnsupported, loraNeeds, err)
	}
	return err
}

// alreadyLoaded knows vLLM's words, as there is no code of their own for it.
func alreadyLoaded(err error) bool {
	s, ok := errors.AsType[*StatusError](err)
	return ok && s.Status == http.StatusBadRequest && strings.Contains(s.Message, "already been loaded")
}

// noRoute tells an engine without the route, as FastAPI puts it, from one that knows the route and not what was asked for.
func noRoute(s *StatusError) bool {
	return s.Status == http.StatusMethodNotAllowed || s.Status == http.StatusNotFound && (s.Message == "Not Found" || s.Message == "")
}

// only200 reads the answer to its end.
func only200(path string, r *http.Response) error {
	if r.StatusCode != http.StatusOK {
		return statusError(path, r)
	}
	return below500(path, r)
}

// bound gives ctx a deadline if it has none.
func bound(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if _, bounded := ctx.Deadline(); bounded {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, limit)
}
