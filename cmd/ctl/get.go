package ctl

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

// What mobula get lists.
const (
	getAll      = ""
	getModels   = "models"
	getReplicas = "replicas"
	getHosts    = "hosts"
	getLoRAs    = "loras"
	getEvents   = "events"
	getFleet    = "fleet"
)

func gettable() []string {
	return []string{getModels, getReplicas, getHosts, getLoRAs, getEvents, getFleet}
}

type getOptions struct {
	kind, name string
	output     string
	watch      bool
	bare       bool
}

func (c *ctl) getCommand() *cobra.Command {
	var o getOptions
	cmd := &cobra.Command{
		Use:   "get [models|replicas|hosts|loras|events|fleet] [NAME]",
		Short: "List what there is",
		Long: `Lists models and replicas, or what is asked for. With a NAME only that one; for
replicas NAME may also be a model.

-o wide adds columns, -o json and -o yaml give all that is known, -o name gives names only.
On a terminal --watch draws the table again as it changes; elsewhere it adds a line for each
row that changes.`,
		Example: `  mobula get

  # The replicas of one model, with their GPUs and load
  mobula get replicas llama -o wide

  # Hosts as they come and go
  mobula get hosts --watch

  # The fleet file that is in force
  mobula get fleet > fleet.yaml

  # For scripts
  mobula get models -o json | jq -r '.[] | select(.ready < .wanted) | .name'
  mobula get replicas --no-headers`,
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				var ok bool
				if o.kind, ok = plural(args[0]); !ok {
					return hinted(usagef("what is %q? want one of %s", args[0], strings.Join(gettable(), ", ")),
						"one object by its name: mobula describe %s", args[0])
				}
			}
			if len(args) > 1 {
				o.name = args[1]
			}
			return c.get(cmd.Context(), o)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return c.completeGet(cmd.Context(), args), cobra.ShellCompDirectiveNoFileComp
		},
	}
	outputFlag(cmd, &o.output)
	cmd.Flags().BoolVarP(&o.watch, "watch", "w", false, "go on and show changes, until Ctrl-C")
	cmd.Flags().BoolVar(&o.bare, "no-headers", false, "without the line of headers")
	return cmd
}

// plural gives what a word stands for, in the singular or short too.
func plural(word string) (kind string, ok bool) {
	for _, k := range gettable() {
		if word == k || word+"s" == k {
			return k, true
		}
	}
	return "", false
}

func (c *ctl) completeGet(ctx context.Context, args []string) []cobra.Completion {
	if len(args) == 0 {
		return gettable()
	}
	if len(args) > 1 {
		return nil
	}
	switch kind, _ := plural(args[0]); kind {
	case getModels, getLoRAs:
		return c.completions(ctx, nil, kindModel)
	case getReplicas:
		return c.completions(ctx, nil, kindReplica, kindModel)
	case getHosts:
		return c.completions(ctx, nil, kindHost)
	}
	return nil
}

func (c *ctl) get(ctx context.Context, o getOptions) error {
	if o.output != asTable && !slices.Contains(outputs(), o.output) {
		return usagef("-o %s: want one of %s", o.output, strings.Join(outputs(), ", "))
	}
	switch o.kind {
	case getFleet:
		return c.getFleet(ctx, o)
	case getEvents:
		if o.name != "" {
			return usagef("events have no names: mobula describe %s shows those of one object", o.name)
		}
		return c.events(ctx, eventsOptions{output: o.output, bare: o.bare, watch: o.watch})
	}
	if o.watch {
		api, err := c.Client()
		if err != nil {
			return err
		}
		return c.watch(ctx, api, o)
	}
	return c.call(ctx, func(ctx context.Context, api client.API) error {
		v, err := api.View(ctx, 0)
		if err != nil {
			return err
		}
		text, err := c.rendered(v, o)
		if err != nil {
			return err
		}
		if text == "" {
			c.err.line("%s", nothing(v, o.kind))
		}
		c.out.print(text)
		c.warnStale(v)
		return nil
	})
}

// warnStale tells on standard error when what was shown is old.
func (c *ctl) warnStale(v *control.View) {
	if v.Stale != "" {
		c.err.line("%s the platform can't be asked since %s, this is the last that is known: %s",
			c.err.paint(yellow, "warning:"), c.since(v.StaleSince), clean(v.Stale))
	}
}

// rendered gives what get prints of a view.
func (c *ctl) rendered(v *control.View, o getOptions) (string, error) {
	value, tables, err := c.selection(v, o)
	if err != nil {
		return "", err
	}
	switch o.output {
	case asJSON:
		return toJSON(value)
	case asYAML:
		return toYAML(value)
	case asName:
		return objectNames(value), nil
	}
	var parts []string
	for _, t := range tables {
		if len(t.rows) > 0 {
			parts = append(parts, joined(t.lines(c.widthOf(o), o.bare, c.out.colour)))
		}
	}
	return strings.Join(parts, "\n"), nil
}

// widthOf gives the bound on a table's width: wide ones may be wider than the terminal.
func (c *ctl) widthOf(o getOptions) int {
	if o.output == asWide {
		return 0
	}
	return c.out.width()
}

// selection gives what was asked for, as a value for programs and as tables for people.
func (c *ctl) selection(v *control.View, o getOptions) (value any, tables []*table, err error) {
	wide := o.output == asWide
	switch o.kind {
	case getAll:
		all := *v
		all.Models, all.Replicas, all.Hosts, all.Routers = listed(v.Models), listed(v.Replicas), listed(v.Hosts), listed(v.Routers)
		return all, []*table{c.modelTable(v.Models, wide), c.replicaTable(v.Replicas, wide)}, nil
	case getModels:
		return only(v, v.Models, kindModel, o.name, func(m *control.ModelStatus) string { return m.Name },
			func(some []control.ModelStatus) *table { return c.modelTable(some, wide) })
	case getReplicas:
		if m := findModel(v, o.name); m != nil && findReplica(v, o.name) == nil {
			some := listed(replicasOf(v, m.Name))
			return some, []*table{c.replicaTable(some, wide)}, nil
		}
		return only(v, v.Replicas, kindReplica, o.name, func(r *control.ReplicaStatus) string { return r.ID },
			func(some []control.ReplicaStatus) *table { return c.replicaTable(some, wide) })
	case getHosts:
		return only(v, v.Hosts, kindHost, o.name, func(h *mobula.Host) string { return h.Name },
			func(some []mobula.Host) *table { return c.hostTable(v, some, wide) })
	}
	all := loras(v)
	if o.name != "" {
		all = slices.DeleteFunc(all, func(l lora) bool { return l.Name != o.name && l.Model != o.name })
		if len(all) == 0 {
			return nil, nil, hinted(fmt.Errorf("no LoRA is named %q, and no model with LoRAs either", o.name), "mobula get loras")
		}
	}
	return all, []*table{loraTable(all)}, nil
}

// only gives all of a kind, or the one with that name.
func only[T any](v *control.View, all []T, kind, name string, nameOf func(*T) string, show func([]T) *table) (any, []*table, error) {
	if name == "" {
		return listed(all), []*table{show(all)}, nil
	}
	_, found, err := resolve(v, name, kind)
	if err != nil {
		return nil, nil, err
	}
	i := slices.IndexFunc(all, func(one T) bool { return nameOf(&one) == found })
	return all[i], []*table{show(all[i : i+1])}, nil
}

// listed gives an empty list in place of none, for programs.
func listed[T any](all []T) []T {
	if all == nil {
		return []T{}
	}
	return all
}

// objectNames gives "model/llama", one a line.
func objectNames(value any) string {
	var b strings.Builder
	add := func(kind, name string) { b.WriteString(kind + "/" + clean(name) + "\n") }
	switch v := value.(type) {
	case control.View:
		return objectNames(v.Models) + objectNames(v.Replicas)
	case []control.ModelStatus:
		for _, m := range v {
			add(kindModel, m.Name)
		}
	case []control.ReplicaStatus:
		for _, r := range v {
			add(kindReplica, r.ID)
		}
	case []mobula.Host:
		for _, h := range v {
			add(kindHost, h.Name)
		}
	case []lora:
		for _, l := range v {
			add("lora", l.Name)
		}
	case control.ModelStatus:
		add(kindModel, v.Name)
	case control.ReplicaStatus:
		add(kindReplica, v.ID)
	case mobula.Host:
		add(kindHost, v.Name)
	}
	return b.String()
}

// nothing says that there is none of a kind, and what to do about it.
func nothing(v *control.View, kind string) string {
	switch {
	case kind == getHosts:
		return "no hosts: on bare metal mobula token shows how one joins"
	case kind == getLoRAs:
		return "no LoRAs: they are listed under a model's loras in the fleet file"
	case v.Fleet == "" || len(v.Models) == 0:
		return "no models: mobula apply -f fleet.yaml"
	}
	return "no replicas: " + count(len(v.Models), "model") + " with none wanted, mobula get models shows why"
}

func (c *ctl) getFleet(ctx context.Context, o getOptions) error {
	return c.call(ctx, func(ctx context.Context, api client.API) error {
		file, err := api.Fleet(ctx)
		if hasCode(err, "notfound") || err == nil && len(file) == 0 {
			c.err.line("no fleet: mobula apply -f fleet.yaml")
			return nil
		}
		if err != nil {
			return err
		}
		text := string(file)
		switch o.output {
		case asJSON:
			var v any
			if err := yaml.Unmarshal(file, &v); err != nil {
				return fmt.Errorf("read the fleet file: %w", err)
			}
			if text, err = toJSON(v); err != nil {
				return err
			}
		case asName:
			fleet, err := mobula.Load(file, getFleet)
			if err != nil {
				return err
			}
			text = "fleet/" + fleet.Name + "\n"
		default:
			if c.out.terminal {
				text = shown(text)
			}
		}
		c.out.print(text)
		return nil
	})
}

// watch shows views as they come until ctx ends.
func (c *ctl) watch(ctx context.Context, api client.API, o getOptions) error {
	w := &watcher{ctl: c, o: o}
	return follow(ctx, api, func(s sight) (bool, error) {
		if c.out.terminal && (o.output == asTable || o.output == asWide) {
			return false, w.draw(s)
		}
		return false, w.append(s)
	})
}

// watcher is a get that goes on.
type watcher struct {
	*ctl
	o       getOptions
	version int64
	seen    map[string]bool // keys of the rows that were printed
	columns int             // under the last headers
	away    time.Time
}

// draw draws a terminal again.
func (w *watcher) draw(s sight) error {
	text, err := w.rendered(s.view, w.o)
	if err != nil {
		return err
	}
	if text == "" {
		text = nothing(s.view, w.o.kind)
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if s.away == nil {
		w.away = time.Time{}
	} else {
		if w.away.IsZero() {
			w.away = w.Now()
		}
		lines = append(lines, w.out.paint(red, "the control plane is away for "+w.since(w.away)+": "+clean(s.away.Error())))
	}
	w.out.live(lines)
	return nil
}

// append prints what has changed.
func (w *watcher) append(s sight) error {
	if s.view.Version == w.version {
		return nil
	}
	first := w.version == 0
	w.version = s.view.Version
	_, tables, err := w.selection(s.view, w.o)
	if err != nil {
		return err
	}
	if len(tables) > 1 || w.o.output != asTable && w.o.output != asWide {
		text, err := w.rendered(s.view, w.o)
		if !first && w.o.output == asTable {
			text = "\n" + text
		}
		w.out.print(text)
		return err
	}
	t := tables[0]
	keys := t.keys()
	changed := t.only(func(i int) bool { return !w.seen[keys[i]] })
	if len(changed.rows) > 0 {
		w.out.print(joined(changed.lines(0, w.o.bare || w.columns == len(t.columns), w.out.colour)))
		w.columns = len(t.columns)
	}
	w.seen = map[string]bool{}
	for _, k := range keys {
		w.seen[k] = true
	}
	return nil
}
