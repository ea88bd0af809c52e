package openai

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"
	"github.com/tidwall/sjson"

	"github.com/mobula-serve/mobula/router/pick"
)

// modelList is /v1/models of one snapshot.
type modelList struct {
	snapshot *pick.Snapshot
	body     []byte
	cards    map[string][]byte // by id and alias
}

// modelsOf renders the list once a snapshot: every model that some endpoint serves or that is
// placed, as the engine describes it, and an entry for each alias.
func (e *Edge) modelsOf(s *pick.Snapshot) *modelList {
	if l := e.models.Load(); l != nil && l.snapshot == s {
		return l
	}
	l := &modelList{snapshot: s, cards: map[string][]byte{}}
	var b bytes.Buffer
	b.WriteString(`{"object":"list","data":[`)
	first := true
	add := func(id string, card []byte) {
		if !first {
			b.WriteByte(',')
		}
		first = false
		b.Write(card)
		l.cards[id] = card
	}
	for _, g := range s.Models() {
		if !g.Offered() {
			continue
		}
		card := cardOf(g)
		add(g.Model, card)
		for _, a := range g.Aliases {
			if c, err := sjson.SetBytes(card, "id", a); err == nil {
				add(a, c)
			}
		}
	}
	b.WriteString("]}")
	l.body = b.Bytes()
	e.models.Store(l)
	return l
}

// cardOf is the engine's own card, or a plain one when it gave none.
func cardOf(g *pick.Group) []byte {
	if json.Valid(g.Card.Raw) {
		return g.Card.Raw
	}
	b, err := json.Marshal(map[string]any{"id": g.Model, "object": "model", "created": 0, "owned_by": "mobula"})
	if err != nil {
		return []byte("{}")
	}
	return b
}

func (e *Edge) listModels(c *gin.Context) {
	c.Header(anyOrigin, "*")
	c.Data(http.StatusOK, "application/json", e.modelsOf(e.fleet.Snapshot()).body)
}

// getModel answers models.retrieve, which vLLM itself does not have.
func (e *Edge) getModel(c *gin.Context) {
	id := strings.TrimPrefix(c.Param("id"), "/")
	s := e.fleet.Snapshot()
	if id == "" {
		e.listModels(c)
		return
	}
	if card, ok := e.modelsOf(s).cards[id]; ok {
		c.Header(anyOrigin, "*")
		c.Data(http.StatusOK, "application/json", card)
		return
	}
	e.fail(c, &failure{status: http.StatusNotFound, param: "model", message: unknownModel(s, []byte(id))})
}

// onlyModel is the single base model that the fleet offers, nil when there are more or none.
func onlyModel(s *pick.Snapshot) *pick.Group {
	var only *pick.Group
	for _, g := range s.Models() {
		if !g.Offered() || g.Base != g.Model {
			continue
		}
		if only != nil {
			return nil
		}
		only = g
	}
	return only
}

// unknownModel says what there is instead, in vLLM's words.
func unknownModel(s *pick.Snapshot, name []byte) string {
	const most = 10
	var names []string
	more := ""
	for _, g := range s.Models() {
		if !g.Offered() {
			continue
		}
		if len(names) == most {
			more = ", ..."
			break
		}
		names = append(names, g.Model)
	}
	valid := " No engine serves a model yet."
	if len(names) > 0 {
		valid = " Valid models: " + strings.Join(names, ", ") + more + "."
	}
	return "The model `" + strings.ToValidUTF8(clip(string(name)), "?") + "` does not exist." + valid
}
