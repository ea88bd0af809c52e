package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const (
	maxTurns      = 400      // of a conversation; the oldest are forgotten
	maxPrompt     = 16 << 20 // bytes of a prompt from standard input
	completeAfter = 500 * time.Millisecond
)

// chatOptions are the flags of `mobula chat`.
type chatOptions struct {
	url, model, system, keyFile string
	timeout                     time.Duration
}

func (a *app) chatCommand() *cobra.Command {
	var o chatOptions
	cmd := &cobra.Command{
		Use:                   "chat [PROMPT...]",
		DisableFlagsInUseLine: true,
		Short:                 "Chat with a model from the terminal",
		Long: `Chats with a model of a router, or of any OpenAI-compatible server.

With a prompt, as arguments or on standard input, it prints the answer and nothing else.
Else it opens a conversation: Ctrl-C cancels the running answer, and leaves at the prompt;
/help lists its commands.`,
		Example: `  mobula chat

  # One question
  mobula chat "Why is the sky blue?"
  git diff | mobula chat --system "Write a commit message."

  # Another server and model
  mobula chat --url http://10.0.0.7:8000 --model Qwen/Qwen2.5-7B-Instruct`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.chat(cmd.Context(), o, strings.Join(args, " "))
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVar(&o.url, "url", defaultURL, "base URL of the server")
	f.StringVarP(&o.model, "model", "m", "", "model (default the first that the server lists)")
	f.StringVar(&o.system, "system", "", "system prompt")
	f.StringVar(&o.keyFile, "api-key-file", "", "file that holds the server's API key")
	f.DurationVar(&o.timeout, "timeout", 10*time.Minute, "bound on one answer")
	_ = cmd.RegisterFlagCompletionFunc("model", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return completeModels(cmd.Context(), o), cobra.ShellCompDirectiveNoFileComp
	})
	return cmd
}

// completeModels asks the server which models there are; a shell waits for it.
func completeModels(ctx context.Context, o chatOptions) []string {
	key, err := readKey(o.keyFile)
	if err != nil {
		return nil
	}
	client := newChatServer(o.url, key)
	defer client.close()
	ctx, cancel := context.WithTimeout(ctx, completeAfter)
	defer cancel()
	models, _ := client.models(ctx)
	return models
}

func (a *app) chat(ctx context.Context, o chatOptions, prompt string) error {
	if o.timeout <= 0 {
		return usagef("--timeout %s: want more than 0", o.timeout)
	}
	key, err := readKey(o.keyFile)
	if err != nil {
		return err
	}
	interactive := prompt == "" && isTerminal(a.stdin) && isTerminal(a.stdout)
	if !interactive && prompt == "" {
		if prompt, err = readPrompt(a.stdin); err != nil {
			return err
		}
	}
	client := newChatServer(o.url, key)
	defer client.close()
	talk := &conversation{client: client, model: o.model, system: o.system, timeout: o.timeout}
	if err := talk.chooseModel(ctx); err != nil {
		return err
	}
	if interactive {
		return a.interactive(ctx, talk)
	}
	return a.oneShot(ctx, talk, prompt)
}

// oneShot prints one answer.
func (a *app) oneShot(ctx context.Context, talk *conversation, prompt string) error {
	clean := func(s string) string { return s }
	if isTerminal(a.stdout) {
		clean = safe
	}
	var last string
	_, err := talk.ask(ctx, prompt, func(p piece) {
		if !p.reasoning {
			last = p.text
			_, _ = io.WriteString(a.stdout, clean(p.text))
		}
	})
	if last != "" && !strings.HasSuffix(last, "\n") {
		_, _ = fmt.Fprintln(a.stdout)
	}
	return err
}

// conversation is a chat so far.
type conversation struct {
	client  *chatServer
	model   string
	models  []string // that the server lists
	system  string
	timeout time.Duration
	turns   []message
}

// chooseModel takes the server's first model unless one was named.
func (t *conversation) chooseModel(ctx context.Context) error {
	if t.model != "" {
		return nil
	}
	models, err := t.client.models(ctx)
	if err != nil {
		return err
	}
	if len(models) == 0 {
		return hinted(fmt.Errorf("%s serves no model now", t.client.base), "are its engines up? %s/metrics tells", t.client.base)
	}
	t.model, t.models = models[0], models
	return nil
}

// ask sends a prompt with all that was said before. What came of an answer that the user
// cancelled is kept; a question that failed is forgotten, so that it can be asked again.
func (t *conversation) ask(ctx context.Context, prompt string, emit func(piece)) (answer, error) {
	asked, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	turns := append(slices.Clip(t.turns), message{"user", prompt})
	said := turns
	if t.system != "" {
		said = append([]message{{"system", t.system}}, turns...)
	}
	a, err := t.client.chat(asked, t.model, said, emit)
	if errors.Is(err, context.DeadlineExceeded) {
		err = hinted(fmt.Errorf("no complete answer within %s", t.timeout), "wait longer with --timeout")
	}
	if err == nil || a.text != "" {
		turns = append(turns, message{"assistant", a.text})
		t.turns = turns[max(0, len(turns)-maxTurns):]
	}
	if refused, ok := errors.AsType[*apiError](err); ok && refused.Status == http.StatusNotFound && !slices.Contains(t.models, t.model) {
		if models, listErr := t.client.models(ctx); listErr == nil && len(models) > 0 {
			err = hinted(err, "there are: %s", strings.Join(models, ", "))
		}
	}
	return a, err
}

// readKey reads an API key from a file; no file is no key.
func readKey(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("--api-key-file: %w", err)
	}
	key := strings.TrimSpace(string(raw))
	if key == "" || strings.ContainsFunc(key, isControl) {
		return "", fmt.Errorf("--api-key-file %s: want one line with a key", file)
	}
	return key, nil
}

// readPrompt reads a whole prompt.
func readPrompt(r io.Reader) (string, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxPrompt+1))
	if err != nil {
		return "", fmt.Errorf("read the prompt: %w", err)
	}
	if len(raw) > maxPrompt {
		return "", fmt.Errorf("the prompt is larger than %d MiB", maxPrompt>>20)
	}
	prompt := strings.TrimSpace(string(raw))
	if prompt == "" {
		return "", usagef("no prompt: give one as arguments or on standard input")
	}
	return prompt, nil
}

// safe gives s without the control characters that would let a model's text drive the
// terminal; tabs and line ends stay.
func safe(s string) string {
	return strings.Map(func(r rune) rune {
		if isControl(r) && r != '\n' && r != '\t' {
			return -1
		}
		return r
	}, s)
}
