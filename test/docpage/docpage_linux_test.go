package docpage

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCommandsAreWhatFollowsThePrompts(t *testing.T) {
	text := "Text.\n```console\n$ one \\\n    more\noutput\n$ two\n```\n```go\n$ three\n```\n"
	require.Equal(t, []string{"one \\\n    more", "two"}, commands(text))
}

func TestAReaderSeesWhatATerminalShowsAndFindsWhatIsLeft(t *testing.T) {
	r := Reader{Dir: t.TempDir(), Patience: time.Minute}
	said := r.Type(t, []string{"sleep 1000 > log 2>&1 & echo one", "echo two | cat"})
	require.Equal(t, "$ sleep 1000 > log 2>&1 & echo one\none\n$ echo two | cat\ntwo\n", said)
	require.Len(t, r.Left(), 1)
	r.kill()
	require.Empty(t, r.Left())
}
