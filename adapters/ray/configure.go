package ray

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// Configured tells whether there is a cluster to look after.
func (c *Cluster) Configured() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.link != nil
}

// Configure has the cluster of the fleet's platform.ray be used from now on, or none without that section. It fails while
// there are deployments that would be left behind. An error that wraps ErrUnavailable is a warning: the settings are in use.
func (c *Cluster) Configure(ctx context.Context, fleet string, p mobula.Platform, dry bool) error {
	c.configure.Lock()
	defer c.configure.Unlock()
	c.mu.Lock()
	before, l := c.records.settings, c.link
	holds, holdsFleet := c.records.holds(""), c.records.holds(fleet)
	c.mu.Unlock()
	if p.Ray == nil {
		switch {
		case before.Ray == nil || before.Fleet != fleet:
			return nil
		case holdsFleet:
			return fmt.Errorf("fleet %s has deployments on the Ray cluster %s: delete the models first", fleet, before.Ray.Address)
		case dry:
			return nil
		}
		return c.use(fleet, nil, nil, "")
	}
	if before.Ray != nil && l != nil && before.Fleet == fleet && reflect.DeepEqual(before.Ray, p.Ray) {
		if !dry {
			_, err := version(ctx, l.api)
			return err
		}
		return nil
	}
	var elsewhere string
	if holds && before.Ray != nil {
		var err error
		if elsewhere, err = c.elsewhere(before.Ray, p.Ray); err != nil {
			return err
		}
	}
	next, err := c.newLink(*p.Ray)
	if err != nil {
		return err
	}
	warning, err := c.try(ctx, fleet, p.Ray, next, elsewhere, dry)
	if err != nil || dry {
		next.close()
	}
	return errors.Join(err, warning)
}

// try has the cluster behind next be used, unless it is not what it should be. elsewhere is the address of the one that has
// our deployments, empty for the same or for none.
func (c *Cluster) try(ctx context.Context, fleet string, r *mobula.Ray, next *link, elsewhere string, dry bool) (warning, err error) {
	if dry && elsewhere == "" {
		return nil, nil
	}
	c.mu.Lock()
	session := c.records.settings.Session
	known := c.records.settings.Ray
	gone := c.link != nil && c.view.failures >= lostAfter
	c.mu.Unlock()
	v, err := version(ctx, next.api)
	switch {
	case err == nil:
	case !errors.Is(err, adapters.ErrUnavailable):
		return nil, err
	default:
		warning = err
		if known != nil && known.Address == r.Address {
			v.Session = session
		}
	}
	switch {
	case elsewhere == "" || v.Session != "" && v.Session == session:
	case !gone:
		return nil, fmt.Errorf("platform.ray.address: %s is not known to be the cluster at %s, which has deployments: delete the models first", r.Address, elsewhere)
	case !dry:
		c.log.Warn("another Ray cluster takes the place of one that does not answer: what runs there is left alone",
			"former", elsewhere, "address", r.Address)
	}
	if dry {
		return warning, nil
	}
	return warning, c.use(fleet, r, next, v.Session)
}

// elsewhere gives the former address if it differs, and fails when namespace or owner do.
func (c *Cluster) elsewhere(before, next *mobula.Ray) (address string, err error) {
	refuse := func(field, was, is string) error {
		return fmt.Errorf("platform.ray.%s is %s and can't become %s while there are deployments: delete the models first", field, was, is)
	}
	if was, is := namespace(before), namespace(next); was != is {
		return "", refuse("namespace", was, is)
	}
	if was, is := c.owner(before), c.owner(next); was != is {
		return "", refuse("owner", was, is)
	}
	if before.Address != next.Address {
		return before.Address, nil
	}
	return "", nil
}

func namespace(r *mobula.Ray) string {
	if r.Namespace == "" {
		return defaultNamespace
	}
	return r.Namespace
}

// version asks what answers, within a bound.
func version(ctx context.Context, api API) (Version, error) {
	ctx, cancel := context.WithTimeout(ctx, firstLook)
	defer cancel()
	v, err := api.Version(ctx)
	if err != nil {
		err = fmt.Errorf("platform.ray: %w", err)
	}
	return v, err
}

// use makes settings durable and looks after l from now on; nil for none. What is known of the cluster is kept if it is
// the same one.
func (c *Cluster) use(fleet string, r *mobula.Ray, l *link, session string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.sure(); err != nil {
		return err
	}
	s := &c.records.settings
	stays := s.Ray != nil && r != nil && s.Session == session && c.link != nil && c.link.owner == l.owner && namespace(s.Ray) == namespace(r)
	if s.Ray != nil && (r == nil || r.Address != s.Ray.Address && !stays) {
		s.Cordoned = nil
	}
	s.Fleet, s.Ray, s.Session = fleet, r, session
	c.records.saveSettings()
	if err := c.commit(); err != nil {
		return err
	}
	if c.link != nil {
		c.link.close()
	}
	c.link = l
	if !stays {
		c.view, c.endpoints, c.statuses = newView(""), nil, map[string]mobula.Replica{}
		if l != nil {
			c.view.owner = l.owner
		}
	}
	c.news = true
	c.tell()
	c.wake()
	return nil
}
