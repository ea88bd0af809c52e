package openai

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine/sim"
)

func TestAReportCountsThePromptTokensThatAreToBeComputed(t *testing.T) {
	s := newStack(t, options{policy: "cost", models: []mobula.Model{placed("m")}})
	e := startSim(t, sim.Options{Model: "m"})
	s.endpoints(e.endpoint())
	long := strings.Repeat("a word and another ", 1000)
	ask := func(prompt string) {
		r := s.ask(chat, fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":%q}],"max_tokens":4}`, prompt))
		require.Equal(t, http.StatusOK, r.status, r.body)
	}
	tokens := func() int { return s.reporter.Report(time.Now()).Models[0].PromptTokens }
	require.Zero(t, tokens())
	ask(long)
	first := tokens()
	require.InEpsilon(t, len(long)/tokenBytes, first, .1)
	ask(long)
	require.Less(t, tokens()-first, first/4, "what the engine has in its cache is not to be computed again")
}
