package mobula

import "time"

// Report is what a router tells the control plane, about once a second: how its engines fare and
// what waits. A control plane that hears of several routers adds them up.
type Report struct {
	// Router names the router and is unique among the fleet's routers.
	Router string `json:"router"`
	// At is the router's clock when the report was made.
	At        time.Time        `json:"at"`
	Endpoints []EndpointReport `json:"endpoints"`
	Models    []ModelReport    `json:"models"`
}

// EndpointReport is how one endpoint fares, as this router sees it.
type EndpointReport struct {
	ID string `json:"id"` // Endpoint.ID
	// State of its probes: new, up, down or hung; Reason of the last ejection.
	State  string `json:"state"`
	Reason string `json:"reason,omitempty"`
	// Draining tells that the router knows that it drains and sends it nothing new.
	Draining bool `json:"draining,omitempty"`
	// InFlight are this router's requests to it. WaitingTokens are those of their prompt tokens that wait for prefill.
	InFlight      int `json:"inFlight"`
	WaitingTokens int `json:"waitingTokens"`
	// Running, Waiting and KVUsage (0 to 1) are the engine's own figures, -1 when they are not known.
	Running int     `json:"running"`
	Waiting int     `json:"waiting"`
	KVUsage float64 `json:"kvUsage"`
	// PrefillRate is what the router has learnt of its prefill, in tokens a second; 0 when nothing is known.
	PrefillRate float64 `json:"prefillRate"`
}

// ModelReport is how one model fares in this router over its last window of about ten seconds.
// Quantiles are of requests that got their first token in the window, in seconds; 0 without any.
type ModelReport struct {
	Model string `json:"model"`
	// Held requests wait in the router because no engine runs; OldestHeld in seconds. HeldTokens of their prompts.
	Held       int     `json:"held"`
	OldestHeld float64 `json:"oldestHeld"`
	HeldTokens int     `json:"heldTokens"`
	// Requests that began in the window, and when the last one began (zero for never).
	Requests    int       `json:"requests"`
	LastRequest time.Time `json:"lastRequest"`
	// PromptTokens of these requests, those left out that the KV cache of the picked engine was thought to hold.
	PromptTokens int `json:"promptTokens"`
	// Answered got a first token in the window. Failed ended in an error of ours or of the engines.
	Answered int     `json:"answered"`
	Failed   int     `json:"failed"`
	TTFT50   float64 `json:"ttft50"`
	TTFT90   float64 `json:"ttft90"`
	ITL50    float64 `json:"itl50"`
	ITL90    float64 `json:"itl90"`
}
