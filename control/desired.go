package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/state"
)

// What the Store holds, all in one bucket: the control plane's ID, the fleet that is wanted, the last applies
// (history/GENERATION), a memory for each model (model/NAME), and the last events.
const (
	bucket     = "control"
	keyID      = "id"
	keyDesired = "desired"
	keyEvents  = "events"
	preHistory = "history/"
	preModel   = "model/"
)

// maxHistory bounds the applies that are kept.
const maxHistory = 10

// desired is the fleet that is wanted.
type desired struct {
	Generation int64     `json:"generation"`
	At         time.Time `json:"at"`
	Source     string    `json:"source"` // of the file, for people
	File       []byte    `json:"file"`
	// Deleted fleets are kept until nothing is left of them.
	Deleted bool `json:"deleted,omitempty"`
	// Leaving hosts are being emptied.
	Leaving map[string]bool `json:"leaving,omitempty"`
	// Former fleets were replaced by one of another name; what is left of them is stopped.
	Former []string `json:"former,omitempty"`

	fleet *mobula.Fleet // File, loaded; nil before the first apply
}

// name gives the fleet's, empty without one.
func (d *desired) name() string {
	if d.fleet == nil {
		return ""
	}
	return d.fleet.Name
}

// model gives a model that is to be placed, or nil.
func (d *desired) model(name string) *mobula.Model {
	if d.fleet == nil || d.Deleted {
		return nil
	}
	for i := range d.fleet.Models {
		if m := &d.fleet.Models[i]; m.Name == name && m.Placed() {
			return m
		}
	}
	return nil
}

// load reads all that the Store has.
func (c *Control) load() error {
	err := c.o.Store.Each(bucket, func(key string, value []byte) error {
		switch {
		case key == keyID:
			c.id = string(value)
		case key == keyDesired:
			return decode(key, value, &c.want)
		case key == keyEvents:
			return c.events.decode(value)
		case strings.HasPrefix(key, preModel):
			var m memory
			if err := decode(key, value, &m); err != nil {
				return err
			}
			c.models[strings.TrimPrefix(key, preModel)] = m.clone()
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the control plane's state: %w", err)
	}
	if len(c.want.File) > 0 {
		if c.want.fleet, err = loadFleet(c.want.File, c.want.Source); err != nil {
			return fmt.Errorf("read the fleet that was applied last: %w", err)
		}
	}
	return nil
}

// loadFleet reads a fleet whose models have all that their engines are made from.
func loadFleet(file []byte, source string) (*mobula.Fleet, error) {
	fleet, err := mobula.Load(file, source)
	if err != nil {
		return nil, err
	}
	for i := range fleet.Models {
		fleet.Models[i] = fleet.Engine(fleet.Models[i])
	}
	return fleet, nil
}

func decode(key string, data []byte, to any) error {
	if err := json.Unmarshal(data, to); err != nil {
		return fmt.Errorf("decode %s: %w", key, err)
	}
	return nil
}

// ID gives the name of the control plane whose state a Store holds. The first call makes it.
func ID(s state.Store) (string, error) {
	id, ok, err := s.Get(bucket, keyID)
	if err == nil && !ok {
		id = []byte(newID())
		err = s.Write(state.Change{Bucket: bucket, Key: keyID, Value: id})
	}
	if err != nil {
		return "", fmt.Errorf("name the control plane: %w", err)
	}
	return string(id), nil
}

// draft is a change of what is remembered: it is written first, and then in force.
type draft struct {
	want    *desired           // nil for no change
	models  map[string]*memory // nil to forget one
	history bool               // want is a new generation
	events  []Event            // that tell of it, noted only when it is in force
}

// notef has a draft tell something, and warnf that something is wrong.
func (d *draft) notef(object, reason, format string, args ...any) {
	d.events = append(d.events, Event{Object: object, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

func (d *draft) warnf(object, reason, format string, args ...any) {
	d.events = append(d.events, Event{Object: object, Reason: reason, Warning: true, Message: fmt.Sprintf(format, args...)})
}

// commit writes a draft and puts it in force. One that can't be written changes nothing but that an event says so. c.mu is held.
func (c *Control) commit(d draft) error {
	var all []state.Change
	set := func(key string, value any) error {
		data, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("encode %s: %w", key, err)
		}
		all = append(all, state.Change{Bucket: bucket, Key: key, Value: data})
		return nil
	}
	if d.want != nil {
		if err := set(keyDesired, d.want); err != nil {
			return err
		}
		if d.history {
			if err := set(historyKey(d.want.Generation), d.want); err != nil {
				return err
			}
			all = append(all, state.Change{Bucket: bucket, Key: historyKey(d.want.Generation - maxHistory)})
		}
	}
	for name, m := range d.models {
		if m == nil {
			all = append(all, state.Change{Bucket: bucket, Key: preModel + name})
		} else if err := set(preModel+name, m); err != nil {
			return err
		}
	}
	events := c.events.with(d.events, c.o.Now())
	if events.dirty {
		data, err := events.encode(keptEvents)
		if err != nil {
			return err
		}
		all = append(all, state.Change{Bucket: bucket, Key: keyEvents, Value: data})
	}
	if len(all) == 0 {
		return nil
	}
	err := c.o.Store.Write(all...)
	if errors.Is(err, state.ErrFull) {
		err = c.squeeze(all, &events)
	}
	if err != nil {
		err = fmt.Errorf("write the control plane's state: %w", err)
		c.notef("fleet", "StateNotWritten", true, "%v", err)
		return err
	}
	c.events = events
	c.events.dirty = false
	for i := range d.events {
		c.noted(&d.events[i])
	}
	if d.want != nil {
		c.want = *d.want
	}
	for name, m := range d.models {
		if m == nil {
			delete(c.models, name)
		} else {
			c.models[name] = *m
		}
	}
	return nil
}

// squeeze writes changes without what can be done without: files of former applies, and events but for the newest.
func (c *Control) squeeze(all []state.Change, events *events) error {
	const kept = 20
	all = slices.DeleteFunc(all, func(ch state.Change) bool { return ch.Key == keyEvents || strings.HasPrefix(ch.Key, preHistory) })
	data, err := events.encode(kept)
	if err != nil {
		return err
	}
	all = append(all, state.Change{Bucket: bucket, Key: keyEvents, Value: data})
	err = c.o.Store.Each(bucket, func(key string, _ []byte) error {
		if strings.HasPrefix(key, preHistory) {
			all = append(all, state.Change{Bucket: bucket, Key: key})
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.o.Store.Write(all...)
}

func historyKey(generation int64) string {
	return fmt.Sprintf("%s%020d", preHistory, max(0, generation))
}
