package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"
)

const chatHelp = `/reset        forget what was said
/model NAME   talk to another model
/models       list the models
/system TEXT  set the system prompt, empty for none
/exit         leave; so do Ctrl-D, and Ctrl-C at the prompt
Ctrl-C cancels a running answer.`

// interactive talks at the terminal until the user leaves or ctx ends.
func (a *app) interactive(ctx context.Context, talk *conversation) error {
	in, out := a.stdin.(*os.File), a.stdout.(*os.File)
	old, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	defer func() { _ = term.Restore(int(in.Fd()), old) }()
	resize := func(t *term.Terminal) {
		if w, h, err := term.GetSize(int(out.Fd())); err == nil && w > 0 && h > 0 {
			_ = t.SetSize(w, h)
		}
	}
	return newSession(talk, in, out, newConsole(out), resize).run(ctx)
}

// session is a conversation on a terminal in raw mode.
type session struct {
	talk   *conversation
	keys   *keyboard
	term   *term.Terminal
	style  *console // for its colours only: all output goes through term
	resize func(*term.Terminal)
}

func newSession(talk *conversation, in io.Reader, out io.Writer, style *console, resize func(*term.Terminal)) *session {
	keys := newKeyboard(in)
	return &session{talk, keys, term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{keys, out}, "> "), style, resize}
}

// run reads lines and answers them until the input ends.
func (s *session) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.keys.close) // so that a prompt does not outlive ctx
	defer stop()
	defer s.keys.close()
	s.say("%s", s.style.dim(fmt.Sprintf("%s at %s; /help lists commands", s.talk.model, s.talk.client.base)))
	for {
		s.resize(s.term)
		line, err := s.term.ReadLine()
		if err != nil && !errors.Is(err, term.ErrPasteIndicator) {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("terminal: %w", err)
		}
		line = strings.TrimSpace(line)
		switch {
		case line == "":
		case strings.HasPrefix(line, "/"):
			if !s.command(ctx, line) {
				return nil
			}
		default:
			s.answer(ctx, line)
		}
	}
}

// answer shows the answer to a prompt as it comes.
func (s *session) answer(ctx context.Context, prompt string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.keys.interrupts(cancel)
	defer s.keys.interrupts(nil)
	began := time.Now()
	thinking := false
	got, err := s.talk.ask(ctx, prompt, func(p piece) {
		text := safe(p.text)
		if p.reasoning {
			text = s.style.dim(text)
		} else if thinking {
			text = "\n\n" + text
		}
		thinking = p.reasoning
		_, _ = io.WriteString(s.term, text)
	})
	if got.text != "" {
		s.say("")
	}
	hint, hinted := errors.AsType[*hintedError](err)
	switch {
	case err == nil:
		s.say("%s", s.style.dim(summary(got, time.Since(began))))
	case ctx.Err() != nil:
		s.say("%s", s.style.dim("(cancelled)"))
	case hinted:
		s.say("%s %v (%s)", s.style.bad("error:"), err, hint.hint)
	default:
		s.say("%s %v", s.style.bad("error:"), err)
	}
}

// summary is the line under an answer.
func summary(a answer, d time.Duration) string {
	s := fmt.Sprintf("(%.1fs", d.Seconds())
	if a.endpoint != "" {
		s += ", " + printable(a.endpoint, 200)
	}
	if a.reason != "" && a.reason != "stop" {
		s += ", ended by " + printable(a.reason, 40)
	}
	return s + ")"
}

// command runs a line that begins with a slash. It is false when the user leaves.
func (s *session) command(ctx context.Context, line string) bool {
	name, arg, _ := strings.Cut(line, " ")
	arg = strings.TrimSpace(arg)
	switch name {
	case "/exit", "/quit":
		return false
	case "/help":
		s.say("%s", chatHelp)
	case "/reset":
		s.talk.turns = nil
		s.say("%s", s.style.dim("(nothing was said)"))
	case "/system":
		s.talk.system = arg
	case "/models", "/model":
		s.models(ctx, name, arg)
	default:
		s.say("there is no %s; /help lists commands", safe(name))
	}
	return true
}

func (s *session) models(ctx context.Context, name, arg string) {
	models, err := s.talk.client.models(ctx)
	switch {
	case err != nil:
		s.say("%s %v", s.style.bad("error:"), err)
	case name == "/models":
		for _, m := range models {
			mark := "  "
			if m == s.talk.model {
				mark = "* "
			}
			s.say("%s%s", mark, safe(m))
		}
	case arg == "":
		s.say("%s", safe(s.talk.model))
	case !slices.Contains(models, arg):
		s.say("there is no model %s; /models lists them", safe(arg))
	default:
		s.talk.model = arg
	}
}

func (s *session) say(format string, args ...any) {
	_, _ = fmt.Fprintf(s.term, format+"\n", args...)
}
