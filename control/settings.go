package control

import (
	"bytes"
	"context"
	"slices"
)

// Settings are what a router takes from the fleet as it was applied last. They are immutable.
type Settings struct {
	// Version is another one after each change, and after a restart of the control plane.
	Version int64 `json:"version"`
	// File is the fleet file, YAML; empty before the first apply.
	File string `json:"file"`
	// Deleted names the models of the file that were to be placed and that somebody has deleted since: requests for them have nothing to
	// wait for.
	Deleted []string `json:"deleted,omitempty"`
}

// Settings gives what routers need. With after above 0 it waits while that is the Version; when ctx ends it gives what there is.
func (c *Control) Settings(ctx context.Context, after int64) (*Settings, error) {
	for {
		c.mu.Lock()
		s, changed := c.settings, c.changed
		c.mu.Unlock()
		if after <= 0 || s.Version != after {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, nil
		case <-changed:
		}
	}
}

// makeSettings gives the settings that are in force: those that were, unless they differ. c.mu is held.
func (c *Control) makeSettings() *Settings {
	var file []byte
	deleted := []string{}
	if c.want.fleet != nil {
		file = c.want.File
		for i := range c.want.fleet.Models {
			if m := &c.want.fleet.Models[i]; m.Placed() && (c.want.Deleted || c.models[m.Name].Deleted) {
				deleted = append(deleted, m.Name)
			}
		}
	}
	if was := c.settings; was != nil && slices.Equal(was.Deleted, deleted) && bytes.Equal([]byte(was.File), file) {
		return was
	}
	return &Settings{Version: c.version, File: string(file), Deleted: deleted}
}
