package agent

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
)

// MaxTasks bounds the tasks of a Wish.
const MaxTasks = 1000

// maxParts is fleet.go's bound on Resources.Hosts.
const maxParts = 64

// idShape is what a Task.ID may be: it names a folder and a part of a URL.
const idShape = `^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`

// Check tells what is wrong with a Wish, as an ErrInvalid; nil when nothing is.
func (w *Wish) Check() error {
	if w.Epoch < 1 {
		return fmt.Errorf("%w: epoch %d, want at least 1", ErrInvalid, w.Epoch)
	}
	if len(w.Tasks) > MaxTasks {
		return fmt.Errorf("%w: %d tasks, at most %d", ErrInvalid, len(w.Tasks), MaxTasks)
	}
	shape, seen := regexp.MustCompile(idShape), map[string]bool{}
	for _, t := range w.Tasks {
		if !shape.MatchString(t.ID) {
			return fmt.Errorf("%w: task %q: an id has letters, digits, dots and dashes, at most 128", ErrInvalid, t.ID)
		}
		if seen[t.ID] {
			return fmt.Errorf("%w: task %q is there twice", ErrInvalid, t.ID)
		}
		seen[t.ID] = true
		if err := t.check(); err != nil {
			return fmt.Errorf("%w: task %q: %w", ErrInvalid, t.ID, err)
		}
	}
	return nil
}

func (t *Task) check() error {
	switch kind := t.Model.Engine.Kind; {
	case t.Model.Name == "":
		return errors.New("no model")
	case kind != "" && kind != "vllm" && kind != "sim":
		return fmt.Errorf("engine %q, want vllm or sim", kind)
	case t.Rank < 0 || t.Parts < 0 || t.Parts > maxParts || t.Rank >= max(t.Parts, 1):
		return fmt.Errorf("part %d of %d", t.Rank, t.Parts)
	case t.Parts > 1 && (t.Master == "" || t.MasterPort < 1 || t.MasterPort > 65535):
		return fmt.Errorf("parts meet at %q, port %d", t.Master, t.MasterPort)
	case slices.Contains(t.Devices, ""):
		return errors.New("a device without an id")
	}
	return nil
}
