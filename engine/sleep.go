package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/mobula-serve/mobula"
)

// sleepTimeout bounds sleeping and waking when the context has no deadline: weights of a terabyte are moved.
const sleepTimeout = 5 * time.Minute

// Levels of sleep.
const (
	SleepOffload = 1 // the weights wait in the host's memory; the KV cache is dropped
	SleepDiscard = 2 // the weights are dropped too, and have to be loaded again after waking
)

// Sleep has the engine give its GPUs' memory back, at level SleepOffload or SleepDiscard. Requests that run are
// finished first, new ones wait until Wake. An engine that sleeps already is success. Without a deadline in ctx it
// takes at most 5 minutes. It fails with ErrUnsupported on an engine that can't sleep.
func (c *Client) Sleep(ctx context.Context, e mobula.Endpoint, level int) error {
	if level != SleepOffload && level != SleepDiscard {
		return fmt.Errorf("put %s to sleep: want level %d or %d, got %d", e.URL, SleepOffload, SleepDiscard, level)
	}
	// By default vLLM aborts what runs.
	return c.postSleep(ctx, e, "/sleep?level="+strconv.Itoa(level)+"&mode=wait")
}

// Wake has the engine take its GPUs' memory again and serve. An engine that is awake is success. Without a deadline
// in ctx it takes at most 5 minutes. It fails with ErrUnsupported on an engine that can't sleep.
func (c *Client) Wake(ctx context.Context, e mobula.Endpoint) error {
	return c.postSleep(ctx, e, "/wake_up")
}

// IsSleeping tells whether the engine sleeps. It fails with ErrUnsupported on an engine that can't.
func (c *Client) IsSleeping(ctx context.Context, e mobula.Endpoint) (asleep bool, err error) {
	const path = "/is_sleeping"
	err = c.call(ctx, e, http.MethodGet, path, nil, func(r *http.Response) error {
		if r.StatusCode != http.StatusOK {
			return statusError(path, r)
		}
		body, err := readAll(r.Body, maxErrorBytes)
		if err != nil {
			return err
		}
		var answer struct {
			IsSleeping *bool `json:"is_sleeping"`
		}
		if json.Unmarshal(body, &answer) != nil || answer.IsSleeping == nil {
			return fmt.Errorf(`%w: %s has no "is_sleeping"`, ErrMalformed, path)
		}
		asleep = *answer.IsSleeping
		return nil
	})
	return asleep, canSleep(err)
}

func (c *Client) postSleep(ctx context.Context, e mobula.Endpoint, path string) error {
	ctx, cancel := bound(ctx, sleepTimeout)
	defer cancel()
	return canSleep(c.call(ctx, e, http.MethodPost, path, nil, func(r *http.Response) error { return only200(path, r) }))
}

func canSleep(err error) error {
	if s, ok := errors.AsType[*StatusError](err); ok && noRoute(s) {
		return fmt.Errorf("%w: sleep; %s: %w", ErrUnsupported, sleepNeeds, err)
	}
	return err
}
