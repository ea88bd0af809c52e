package ctl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

const (
	barWidth   = 12
	maxWaiting = 3 // what still waits, in an error
)

// waitOptions are the flags of the commands that wait.
type waitOptions struct {
	wait    bool
	timeout time.Duration
}

func (o waitOptions) check() error {
	if o.timeout <= 0 {
		return usagef("--timeout %s: want more than 0", o.timeout)
	}
	return nil
}

// step is one line of what is waited for.
type step struct {
	name       string
	have, want int
	unit       string // of have and want
	// text says what waits; it began at since. Both are empty when nothing does.
	text  string
	since time.Time
	done  bool
	// failed says why it will never be done.
	failed string
}

// awaited is something that takes a while.
type awaited struct {
	what string // "the apply"
	stay string // what a person who leaves should know
	// steps gives how far it is.
	steps func(*control.View) []step
}

// await shows progress until every step is done or has failed, the time is over or ctx ends.
func (c *ctl) await(ctx context.Context, api client.API, timeout time.Duration, a awaited) error {
	began := c.Now()
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	p := progress{ctl: c, told: map[string]string{}}
	var last []step
	err := follow(bounded, api, func(s sight) (bool, error) {
		if s.view == nil {
			return false, nil
		}
		last = a.steps(s.view)
		p.show(last, s)
		return !slices.ContainsFunc(last, func(s step) bool { return !s.done && s.failed == "" }), nil
	})
	c.out.keep()
	switch {
	case ctx.Err() != nil:
		c.err.line("%s", a.stay)
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded) && bounded.Err() != nil:
		return hinted(fmt.Errorf("%s is not complete within %s: %s", a.what, mobula.Duration(timeout), unfinished(last)), "%s", a.stay)
	case err != nil:
		return err
	}
	var failed []string
	for _, s := range last {
		if s.failed != "" {
			failed = append(failed, s.name+": "+s.failed)
		}
	}
	if len(failed) > 0 {
		return errors.New(strings.Join(failed, "\n"))
	}
	c.out.line("%s in %s", c.out.paint(green, "done"), age(c.Now().Sub(began)))
	return nil
}

// unfinished says what still waits.
func unfinished(steps []step) string {
	var rest []string
	for _, s := range steps {
		if !s.done {
			rest = append(rest, words(s.name, s.figures(), s.text, s.failed))
		}
	}
	if len(rest) == 0 {
		return "nothing is known yet"
	}
	if more := len(rest) - maxWaiting; more > 0 {
		rest = append(rest[:maxWaiting:maxWaiting], fmt.Sprintf("%d more", more))
	}
	return strings.Join(rest, "; ")
}

// words joins those that are not empty.
func words(all ...string) string {
	return strings.Join(slices.DeleteFunc(all, func(s string) bool { return s == "" }), " ")
}

// figures gives "1/2 ready".
func (s step) figures() string {
	if s.unit == "" {
		return ""
	}
	return fmt.Sprintf("%d/%d %s", s.have, s.want, s.unit)
}

// progress shows steps: on a terminal in place, elsewhere a line for each change.
type progress struct {
	*ctl
	told map[string]string
	away bool
}

func (p *progress) show(steps []step, s sight) {
	if p.out.terminal {
		p.draw(steps, s)
		return
	}
	if (s.away != nil) != p.away {
		p.away = s.away != nil
		if p.away {
			p.out.line("the control plane is away: %s", clean(s.away.Error()))
		}
	}
	for _, st := range steps {
		line := words(clean(st.name)+":", st.figures(), clean(st.text), clean(st.failed))
		if st.done && st.unit == "" {
			line += " done"
		}
		if p.told[st.name] != line {
			p.told[st.name] = line
			p.out.line("%s", line)
		}
	}
}

func (p *progress) draw(steps []step, s sight) {
	names, figures := 0, 0
	for _, st := range steps {
		names = max(names, displayWidth(clean(st.name)))
		figures = max(figures, displayWidth(st.figures()))
	}
	lines := make([]string, 0, len(steps)+1)
	for _, st := range steps {
		share, code := 0.0, yellow
		if st.want > 0 {
			share = float64(st.have) / float64(st.want)
		}
		switch {
		case st.done:
			share, code = 1, green
		case st.failed != "":
			code = red
		}
		line := pad(clean(st.name), names, false) + "  " + p.out.paint(code, bar(share, barWidth)) + "  " + pad(st.figures(), figures, false)
		switch {
		case st.failed != "":
			line += "  " + p.out.paint(red, clean(st.failed))
		case st.text != "":
			line += "  " + clean(st.text)
			if !st.since.IsZero() {
				line += ", " + p.since(st.since)
			}
		}
		lines = append(lines, strings.TrimRight(line, " "))
	}
	if s.away != nil {
		lines = append(lines, p.out.paint(red, "the control plane is away: "+clean(s.away.Error())))
	}
	p.out.live(lines)
}

// rollout is what is waited for when models roll.
type rollout struct {
	generation int64           // that the view must have reached
	models     []string        // that must be Complete
	moved      map[string]mark // for those that must have left this mark first
	removed    []string        // that must be gone
}

// mark is where a model's rollout was.
type mark struct {
	revision string
	phase    control.Phase
	since    time.Time
}

// marks notes where rollouts are before they are touched.
func marks(v *control.View, models ...string) map[string]mark {
	at := map[string]mark{}
	for _, name := range models {
		if m := findModel(v, name); m != nil {
			at[name] = mark{m.Revision, m.Rollout, m.Since}
		}
	}
	return at
}

// steps gives how far it is.
func (r rollout) steps(v *control.View) []step {
	var steps []step
	for _, name := range r.models {
		s := step{name: name, text: "waits for the control plane"}
		m := findModel(v, name)
		if m == nil || v.Generation < r.generation {
			steps = append(steps, s)
			continue
		}
		if at, ok := r.moved[name]; ok && at.revision == m.Revision && at.phase == m.Rollout && at.since.Equal(m.Since) {
			steps = append(steps, s)
			continue
		}
		steps = append(steps, modelStep(v, m))
	}
	for _, name := range r.removed {
		left := replicasOf(v, name)
		s := step{name: name, text: "removed", done: v.Generation >= r.generation && len(left) == 0}
		if !s.done {
			s.text = "waits for the control plane"
		}
		if len(left) > 0 {
			s.text, s.since = "waits until "+count(len(left), "replica")+" is gone", time.Time{}
			if len(left) > 1 {
				s.text = strings.Replace(s.text, " is ", " are ", 1)
			}
		}
		steps = append(steps, s)
	}
	return steps
}

func modelStep(v *control.View, m *control.ModelStatus) step {
	s := step{name: m.Name, have: m.Updated, want: m.Wanted, unit: "ready"}
	switch m.Rollout {
	case control.RolloutComplete:
		s.have, s.done = m.Ready, true
		return s
	case control.RolloutRolledBack, control.RolloutFailed:
		s.failed = string(m.Rollout)
		if m.Reason != "" {
			s.failed += ": " + m.Reason
		}
		return s
	}
	if r := waitingFor(v, m); r != nil {
		s.text, s.since = "replica "+r.ID+" "+string(r.State), r.Since
		if len(r.Hosts) > 0 {
			s.text += " on " + strings.Join(r.Hosts, ",")
		}
		if r.Reason != "" {
			s.text += ": " + r.Reason
		}
		return s
	}
	s.text, s.since = m.Reason, m.Since
	return s
}

// waitingFor gives the replica that a rollout waits for: one of the new revision that is not ready, the
// worst first, or an old one that drains.
func waitingFor(v *control.View, m *control.ModelStatus) *control.ReplicaStatus {
	worst := []mobula.State{mobula.StateFailed, mobula.StateSuspect, mobula.StatePending, mobula.StateStarting, mobula.StateAsleep, mobula.StateDraining}
	var found *control.ReplicaStatus
	best := len(worst)
	for i := range v.Replicas {
		r := &v.Replicas[i]
		rank := slices.Index(worst, r.State)
		if r.Model != m.Name || rank < 0 || r.Revision != m.Revision && r.State != mobula.StateDraining {
			continue
		}
		if rank < best {
			found, best = r, rank
		}
	}
	return found
}
