package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// What an apply does to a model.
const (
	actionCreate    = "create"
	actionRoll      = "roll"
	actionUpdate    = "update"
	actionRemove    = "remove"
	actionUnchanged = "unchanged"
)

// Apply makes the fleet file what is wanted: see client.API. It fails with a *mobula.FileError for a file
// with problems, with ErrConflict, with ErrInvalid for a section that the platform refuses, and with
// adapters.ErrImpossible for a model that fits on no host; then nothing has changed. A platform that can't be asked
// does not refuse: the fleet is wanted, and made when it answers.
func (c *Control) Apply(ctx context.Context, file []byte, source string, dry, force bool) (*Change, error) {
	next, err := loadFleet(file, source)
	if err != nil {
		return nil, err
	}
	c.applying.Lock()
	defer c.applying.Unlock()
	c.mu.Lock()
	change, d := c.draft(next, file, source)
	if err = c.conflict(change, next, source, force); err == nil && c.known(d) {
		change.Generation = c.want.Generation
		c.mu.Unlock()
		return change, nil
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	move, err := c.move(ctx, next, dry)
	if err != nil {
		return nil, err
	}
	defer move.end()
	change.Warnings = append(change.Warnings, move.warnings...)
	if dry && move.moved { // there is nothing to ask yet
		return change, nil
	}
	undo, err := c.check(ctx, c.checks(change, d, move.moved), dry)
	if err != nil {
		return nil, err
	}
	if dry {
		return change, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// Models may have been planned for in the meantime: what is remembered of them is drafted anew.
	change, d = c.draft(next, file, source)
	change.Warnings = append(change.Warnings, move.warnings...)
	if c.want.name() != next.Name { // another fleet's replicas are another world
		c.asked, c.observed = nil, observation{hosts: c.observed.hosts}
	}
	if move.moved {
		c.asked = nil
	}
	d.notef("fleet", "Applied", "generation %d of fleet %s from %s", d.want.Generation, next.Name, source)
	if err := c.commit(d); err != nil {
		undo()
		return nil, err
	}
	move.keep()
	c.changedByHand()
	return change, nil
}

// known tells whether a draft wants nothing that is not wanted already. c.mu is held.
func (c *Control) known(d draft) bool {
	for name, m := range d.models {
		if was, known := c.models[name]; m == nil || !known || !reflect.DeepEqual(*m, was) {
			return false
		}
	}
	return !c.want.Deleted && bytes.Equal(c.want.File, d.want.File) && c.want.Source == d.want.Source
}

// changedByHand publishes what a command has done and has the next round act on it. c.mu is held.
func (c *Control) changedByHand() {
	c.viewDirty = true
	c.publishLocked(c.o.Now())
	c.wakeUp()
}

// draft gives what an apply changes, for people and for the Store. c.mu is held.
func (c *Control) draft(next *mobula.Fleet, file []byte, source string) (*Change, draft) {
	want := c.want
	want.Generation, want.At, want.Source, want.File = c.want.Generation+1, c.o.Now(), source, bytes.Clone(file)
	want.Deleted, want.fleet = false, next
	change := &Change{Fleet: next.Name, Generation: want.Generation}
	d := draft{want: &want, models: map[string]*memory{}, history: true}
	before := &mobula.Fleet{}
	switch old := c.want.name(); {
	case old == "", old == next.Name && c.want.Deleted:
	case old == next.Name:
		before = c.want.fleet
	default: // another fleet's memories are worth nothing
		want.Former = append(slices.Clone(want.Former), old)
		change.Warnings = append(change.Warnings, "fleet "+old+" is replaced: all its replicas are stopped at once")
		for name := range c.models {
			d.models[name] = nil
		}
	}
	want.Former = slices.DeleteFunc(slices.Clone(want.Former), func(f string) bool { return f == next.Name })
	for i := range next.Models {
		m := &next.Models[i]
		change.Models = append(change.Models, c.modelChange(byName(before, m.Name), m, change))
		if !m.Placed() {
			continue
		}
		mem := memory{}.clone()
		if c.want.name() == next.Name {
			mem = c.models[m.Name].clone()
		}
		mem.Deleted = false
		switch old := byName(before, m.Name); {
		case mem.Pin == "":
		case old != nil && onlyReplicas(old, m): // what has failed is not tried again because another model changes
			change.Warnings = append(change.Warnings, fmt.Sprintf("model %s stays at revision %s, to which it was rolled back: `mobula restart %s` tries the file's again", m.Name, mem.Pin, m.Name))
		default:
			mem.Pin = ""
			if mem.Phase == RolloutRolledBack {
				mem.Phase, mem.Reason, mem.Since = RolloutProgressing, "", c.o.Now()
			}
		}
		if mem.Range != *m.Replicas {
			mem.Range, mem.Scaled = *m.Replicas, nil
		}
		d.models[m.Name] = &mem
	}
	for i := range before.Models {
		if m := &before.Models[i]; byName(next, m.Name) == nil {
			change.Models = append(change.Models, ModelChange{Name: m.Name, Action: actionRemove})
			if m.Placed() {
				change.Warnings = append(change.Warnings, "model "+m.Name+" is removed: its replicas are drained and stopped")
			}
		}
	}
	change.Settings = c.want.fleet == nil || !sameSettings(before, next)
	return change, d
}

// onlyReplicas tells that two models differ in nothing but their number of replicas, if at all.
func onlyReplicas(a, b *mobula.Model) bool {
	scaled := *a
	scaled.Replicas = b.Replicas
	return len(differences(&scaled, b)) == 0
}

func sameSettings(a, b *mobula.Fleet) bool {
	return reflect.DeepEqual(a.Router, b.Router) && reflect.DeepEqual(a.KV, b.KV) &&
		reflect.DeepEqual(a.Platform, b.Platform) && reflect.DeepEqual(a.Providers, b.Providers)
}

func byName(f *mobula.Fleet, name string) *mobula.Model {
	for i := range f.Models {
		if f.Models[i].Name == name {
			return &f.Models[i]
		}
	}
	return nil
}

// modelChange says what happens to one model of the new fleet. c.mu is held.
func (c *Control) modelChange(before, after *mobula.Model, change *Change) ModelChange {
	m := ModelChange{Name: after.Name, Action: actionCreate}
	if before == nil {
		return m
	}
	m.Fields = differences(before, after)
	mem := c.models[after.Name]
	switch {
	case mem.Deleted || !before.Placed() && after.Placed():
		m.Action = actionCreate
	case before.Placed() && !after.Placed():
		m.Action = actionUpdate
		change.Warnings = append(change.Warnings, "model "+m.Name+" is no longer placed: its replicas are drained and stopped")
	case after.Placed() && mem.Target != "" && mem.Target != revisionOf(after, mem.Nonce):
		m.Action = actionRoll
	case len(m.Fields) > 0:
		m.Action = actionUpdate
	default:
		m.Action = actionUnchanged
	}
	if after.Placed() && mem.Scaled != nil && mem.Range != *after.Replicas {
		change.Warnings = append(change.Warnings, fmt.Sprintf("model %s was scaled to %d by hand; %s takes its place", m.Name, *mem.Scaled, after.Replicas))
	}
	return m
}

// conflict says what an apply must not do without force. c.mu is held.
func (c *Control) conflict(change *Change, next *mobula.Fleet, source string, force bool) error {
	if c.want.fleet == nil {
		return nil
	}
	if c.want.name() != next.Name && !force {
		return fmt.Errorf("%w: this control plane has fleet %s, the file has fleet %s: rename it, or use --force to stop all replicas of fleet %s at once",
			ErrConflict, c.want.name(), next.Name, c.want.name())
	}
	if force || c.want.Deleted || source == c.want.Source {
		return nil
	}
	var removed []string
	for _, m := range change.Models {
		if m.Action == actionRemove {
			removed = append(removed, m.Name)
		}
	}
	if len(removed) > 0 {
		return fmt.Errorf("%w: the file from %s lacks %s, which the fleet has from %s; use --force to remove them",
			ErrConflict, source, strings.Join(removed, ", "), c.want.Source)
	}
	return nil
}

// checks gives deployments that the platform has not heard of, for models that are created or rolled; on another
// platform it has heard of none.
func (c *Control) checks(change *Change, d draft, moved bool) (all []adapters.Deployment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range change.Models {
		mem, placed := d.models[m.Name]
		if !placed || mem == nil {
			continue
		}
		model := byName(d.want.fleet, m.Name)
		key := adapters.Key{Fleet: d.want.name(), Model: m.Name, Revision: revisionOf(model, mem.Nonce)}
		if _, held := c.asked[key]; moved || !held {
			all = append(all, adapters.Deployment{Key: key, Model: engineModel(model)})
		}
	}
	return all
}

// check asks the platform whether the deployments could ever run. One that can't say so beforehand is given them
// without a replica; undo takes that back.
func (c *Control) check(ctx context.Context, all []adapters.Deployment, dry bool) (undo func(), err error) {
	checker, asks := c.o.Placer.(adapters.Checker)
	var given []adapters.Key
	undo = func() {
		for _, key := range given {
			if err := c.call(context.WithoutCancel(ctx), func(ctx context.Context) error { return c.o.Placer.Remove(ctx, key) }); err != nil {
				c.log.Warn("can't take back what an apply has tried; it is removed later", "model", key.Model, "error", err)
			}
		}
	}
	if !asks && dry {
		return undo, nil
	}
	for _, d := range all {
		err := c.call(ctx, func(ctx context.Context) error {
			if asks {
				return checker.Check(ctx, d)
			}
			return c.o.Placer.Apply(ctx, d)
		})
		switch {
		case errors.Is(err, adapters.ErrImpossible), err != nil && ctx.Err() != nil:
			undo()
			return nil, err // it names the model
		case err != nil: // it may answer later
			return undo, nil
		case !asks:
			given = append(given, d.Key)
		}
	}
	return undo, nil
}

// differences gives the fields that differ between two models, as "replicas: 1-4 → 2".
func differences(a, b *mobula.Model) (all []string) {
	was, is := map[string]string{}, map[string]string{}
	flatten("", reflect.ValueOf(a).Elem(), was)
	flatten("", reflect.ValueOf(b).Elem(), is)
	names := map[string]bool{}
	for name := range was {
		names[name] = true
	}
	for name := range is {
		names[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if was[name] != is[name] {
			all = append(all, fmt.Sprintf("%s: %s → %s", name, orNone(was[name]), orNone(is[name])))
		}
	}
	return all
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// flatten writes the values of a struct by the path of their names in the fleet file.
func flatten(path string, v reflect.Value, to map[string]string) {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return
		}
		v = v.Elem()
	}
	_, isText := reflect.TypeAssert[fmt.Stringer](v)
	switch {
	case v.Kind() == reflect.Struct && !isText:
		for i := range v.NumField() {
			name := v.Type().Field(i).Tag.Get("yaml")
			if path != "" {
				name = path + "." + name
			}
			flatten(name, v.Field(i), to)
		}
	case v.Kind() == reflect.Slice && v.Len() > 0 && v.Type().Elem().Kind() == reflect.Struct:
		for i := range v.Len() {
			flatten(fmt.Sprintf("%s[%d]", path, i), v.Index(i), to)
		}
	case v.IsZero(), v.Kind() == reflect.Slice && v.Len() == 0:
	case v.Kind() == reflect.Slice:
		to[path] = fmt.Sprintf("%q", v.Interface())
	default:
		to[path] = fmt.Sprint(v.Interface())
	}
}
