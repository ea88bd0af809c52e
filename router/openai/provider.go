package openai

import (
	"bytes"
	"strings"

	"github.com/mobula-serve/mobula/router/pick"
)

// Outside implements what proxy.Exchange asks for a provider: its path, our key in place of the
// client's, and its own name for the model.
func (c *call) Outside(ep *pick.Endpoint) (target string, fields, body []byte) {
	target, fields = outside(ep, c.exchange.Target, c.exchange.Fields)
	return target, fields, c.rename(ep.Provider.ModelName(c.group.Model))
}

// rename gives the client's body with another name for its model. Providers have JSON routes only.
func (c *call) rename(model string) []byte {
	name, m := c.route.spell(model), c.fields.model
	if c.fields.name == nil { // none was given; the last of two members would count, so it goes to the end
		end := bytes.LastIndexByte(c.body, '}')
		head := bytes.TrimRight(c.body[:end], " \t\r\n")
		comma := ","
		if head[len(head)-1] == '{' {
			comma = ""
		}
		return append([]byte(string(head)+comma+`"model":"`+name+`"`), c.body[end:]...)
	}
	renamed := make([]byte, 0, len(c.body)+len(name))
	return append(append(append(renamed, c.body[:m.from]...), name...), c.body[m.to:]...)
}

// anthropicVersion is sent when the client names none; it is the one that there is.
const anthropicVersion = "2023-06-01"

// outside gives a provider's path for ours, and header lines: those few of the client's that say how
// the body is to be read and answered, and the provider's key.
func outside(ep *pick.Endpoint, target string, lines []byte) (there string, fields []byte) {
	p, messages := ep.Provider, strings.HasPrefix(target, "/v1/messages")
	version := false
	for line := range bytes.Lines(lines) {
		name, _, _ := bytes.Cut(line, []byte{':'})
		switch strings.ToLower(string(name)) {
		case "anthropic-version":
			version = true
		case "content-type", "accept", "user-agent", "idempotency-key", nameRequestID, "x-client-request-id", "openai-beta", "anthropic-beta":
		default:
			continue
		}
		fields = append(fields, line...)
	}
	fields = append(fields, "Accept-Encoding: identity\r\n"...) // a stream is watched as it passes
	key := string(ep.APIKey)
	switch {
	case key == "":
	case p.Kind == "azure":
		fields = append(fields, "api-key: "+key+"\r\n"...)
	case p.Kind == "anthropic" && messages:
		fields = append(fields, "x-api-key: "+key+"\r\n"...)
	default:
		fields = append(fields, "Authorization: Bearer "+key+"\r\n"...)
	}
	if p.Kind == "anthropic" && messages && !version {
		fields = append(fields, "anthropic-version: "+anthropicVersion+"\r\n"...)
	}
	return p.BasePath + strings.TrimPrefix(target, "/v1"), fields
}
