package mobula

import (
	"fmt"
	"time"
)

// Role says which part of a request an engine does when prefill and decode run apart.
type Role string

// Roles. The empty role does both.
const (
	RoleBoth    Role = ""
	RolePrefill Role = "prefill"
	RoleDecode  Role = "decode"
)

// UnmarshalText reads "prefill", "decode" and, for the empty role, "both" or nothing.
func (r *Role) UnmarshalText(text []byte) error {
	switch role := Role(text); role {
	case RolePrefill, RoleDecode, RoleBoth:
		*r = role
	case "both":
		*r = RoleBoth
	default:
		return fmt.Errorf("want prefill, decode or both, got %s", quote(string(text)))
	}
	return nil
}

// Endpoint is an address that serves, as a platform reports it. Whether it is alive,
// and what it serves unless Models says so, is for the router's own probes to find.
type Endpoint struct {
	// ID names the endpoint for as long as it exists and is unique in the fleet; a
	// platform without better names uses the URL.
	ID string
	// URL is scheme, host and port, without a path: "http://10.0.0.7:8000", "https://[::1]:8443".
	URL string
	// Models restricts what is routed here to these ids; empty means all that the engine lists.
	Models []string
	// Role is empty for an engine that does prefill and decode.
	Role Role
	// Labels are the platform's, for display and selection.
	Labels map[string]string
	// APIKey replaces the client's Authorization header towards this engine; empty passes the client's on.
	APIKey Secret
	// TLSSkipVerify takes any certificate of an https engine.
	TLSSkipVerify bool
	// Draining endpoints finish what they have and get nothing new.
	Draining bool
	// Provider is set for a service of others, nil for an engine of the fleet. Models are then all that it
	// serves, it is not probed, and URL is without the path that its API is under.
	Provider *ProviderTarget
}

// ProviderTarget is how a provider is asked, and when. It is not changed once it is in an Endpoint.
type ProviderTarget struct {
	// Kind is what it speaks: openai, azure or anthropic.
	Kind string
	// BasePath stands for /v1 in the paths that it is asked for: "/v1", "/openai/v1"; empty for none.
	BasePath string
	// Rename gives its names of models by the fleet's names; one that is not in it has the same name.
	Rename map[string]string
	// Order is its place among the fleet's providers.
	Order int
	// Spill has it asked before engines whose first token is more than SpillAfter away.
	Spill      bool
	SpillAfter time.Duration
	// InFlight bounds the requests to it at once.
	InFlight int
}

// ModelName gives the provider's name for a model of the fleet.
func (p *ProviderTarget) ModelName(model string) string {
	if as := p.Rename[model]; as != "" {
		return as
	}
	return model
}

// Card is one entry of an engine's /v1/models.
type Card struct {
	// ID is the name that a request's "model" gives.
	ID string
	// Parent is the base model of a LoRA, empty for a base model.
	Parent string
	// MaxModelLen is the context length in tokens, 0 when the engine does not say.
	MaxModelLen int
	// Raw is the entry as the engine sent it, one JSON object.
	Raw []byte
}

// Secret is a string that no log, error or dump shows.
type Secret string

// String hides the value.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(secret)"
}

// GoString hides the value from %#v.
func (s Secret) GoString() string { return s.String() }

// MarshalText hides the value from every encoder.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
