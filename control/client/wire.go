package client

import (
	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
)

// What follows are bodies of the API that no other room has a type for.

// ErrorBody is the body of every answer that is an error.
type ErrorBody struct {
	Error ErrorDetail `json:"error"`
}

// ErrorDetail says what went wrong. Code is Error's.
type ErrorDetail struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Endpoint is a mobula.Endpoint as it travels. Its API key travels too: who may ask for endpoints may use them.
type Endpoint struct {
	ID            string            `json:"id"`
	URL           string            `json:"url"`
	Models        []string          `json:"models,omitempty"`
	Role          string            `json:"role,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
	APIKey        string            `json:"apiKey,omitempty"`
	TLSSkipVerify bool              `json:"tlsSkipVerify,omitempty"`
	Draining      bool              `json:"draining,omitempty"`
}

// EndpointList is all endpoints at one moment. Version is another one after each change.
type EndpointList struct {
	Version   int64      `json:"version"`
	Endpoints []Endpoint `json:"endpoints"`
}

// ScaleRequest sets a model's wanted number of replicas. -1 gives it back to the fleet file.
type ScaleRequest struct {
	Replicas *int `json:"replicas"`
}

// EventList holds events, oldest first.
type EventList struct {
	Events []control.Event `json:"events"`
}

// TokenAnswer holds a new join token.
type TokenAnswer struct {
	Token string `json:"token"`
}

// EncodeEndpoint makes the form that travels.
func EncodeEndpoint(e *mobula.Endpoint) Endpoint {
	return Endpoint{
		ID: e.ID, URL: e.URL, Models: e.Models, Role: string(e.Role), Labels: e.Labels,
		APIKey: string(e.APIKey), TLSSkipVerify: e.TLSSkipVerify, Draining: e.Draining,
	}
}

// Decode gives the endpoint back.
func (e *Endpoint) Decode() mobula.Endpoint {
	return mobula.Endpoint{
		ID: e.ID, URL: e.URL, Models: e.Models, Role: mobula.Role(e.Role), Labels: e.Labels,
		APIKey: mobula.Secret(e.APIKey), TLSSkipVerify: e.TLSSkipVerify, Draining: e.Draining,
	}
}
