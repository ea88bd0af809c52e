package control

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// configureTimeout bounds how long a platform may take to use another section of the fleet file.
const configureTimeout = 20 * time.Second

// section is the platform section of a fleet.
type section struct {
	fleet    string
	platform mobula.Platform
}

// sectionOf gives a fleet's section, an empty one without a fleet.
func sectionOf(f *mobula.Fleet) section {
	if f == nil {
		return section{}
	}
	return section{f.Name, f.Platform}
}

// use has the Placer use a section. It does after no error, and after one that wraps adapters.ErrUnavailable.
func (c *Control) use(ctx context.Context, s section, dry bool) error {
	ctx, cancel := context.WithTimeout(ctx, configureTimeout)
	defer cancel()
	err := c.configurer.Configure(ctx, s.fleet, s.platform, dry)
	if !dry && (err == nil || errors.Is(err, adapters.ErrUnavailable)) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.using = &s
		c.observed.at = time.Time{} // there may be something else to see
	}
	return err
}

// configure has the Placer use the fleet's section when it does not yet, since we have just started, and tells
// whether it does.
func (c *Control) configure(ctx context.Context) bool {
	wanted := func() (section, bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		return sectionOf(c.want.fleet), c.configurer != nil && c.using == nil && c.want.fleet != nil
	}
	if _, missing := wanted(); !missing {
		return true
	}
	c.applying.Lock()
	defer c.applying.Unlock()
	s, missing := wanted()
	if !missing {
		return true
	}
	err := c.use(ctx, s, false)
	if err == nil || errors.Is(err, adapters.ErrUnavailable) {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() == nil {
		c.stale(c.o.Now(), fmt.Errorf("platform: %w", err))
	}
	return false
}

// move is an apply's way to the section of its fleet.
type move struct {
	// moved tells that the section is another one: what was known of the platform may not be so.
	moved    bool
	warnings []string
	// end takes it back unless keep was called. It must be called, without c.mu.
	end  func()
	keep func()
}

// move has the Placer use the section of an apply, with dry it only asks whether it could. c.applying is held.
func (c *Control) move(ctx context.Context, next *mobula.Fleet, dry bool) (*move, error) {
	m := &move{end: func() {}, keep: func() {}}
	if c.configurer == nil {
		return m, nil
	}
	to := sectionOf(next)
	c.mu.Lock()
	former := sectionOf(c.want.fleet)
	m.moved = c.using == nil || !reflect.DeepEqual(*c.using, to)
	c.mu.Unlock()
	if m.moved && !dry {
		c.round.Lock() // a round in between would look for the former fleet on the new platform
		kept := false
		m.keep = func() { kept = true }
		m.end = func() {
			defer c.round.Unlock()
			if !kept {
				c.moveBack(context.WithoutCancel(ctx), former)
			}
		}
	}
	switch err := c.use(ctx, to, dry); {
	case errors.Is(err, adapters.ErrUnavailable):
		m.warnings = []string{"platform: " + err.Error()}
	case err != nil:
		m.keep() // the former settings stay by themselves
		m.end()
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: platform: %w", ErrInvalid, err)
	}
	return m, nil
}

// moveBack has the Placer use a former section again.
func (c *Control) moveBack(ctx context.Context, to section) {
	err := c.use(ctx, to, false)
	if err == nil || errors.Is(err, adapters.ErrUnavailable) {
		return
	}
	c.log.Error("can't take back what an apply has set the platform to; tried again", "error", err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.using = nil
}
