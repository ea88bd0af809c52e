package ctl

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

// Kinds of objects, as events and -o name write them.
const (
	kindModel   = "model"
	kindReplica = "replica"
	kindHost    = "host"
)

const (
	completeWithin = 2 * time.Second
	maxListed      = 10 // names in an error
)

// kinds lists the kinds of objects.
func kinds() []string { return []string{kindModel, kindReplica, kindHost} }

// findModel finds a model by its name or an alias.
func findModel(v *control.View, name string) *control.ModelStatus {
	for i := range v.Models {
		if v.Models[i].Name == name {
			return &v.Models[i]
		}
	}
	for i := range v.Models {
		if slices.Contains(v.Models[i].Aliases, name) {
			return &v.Models[i]
		}
	}
	return nil
}

func findReplica(v *control.View, id string) *control.ReplicaStatus {
	for i := range v.Replicas {
		if v.Replicas[i].ID == id {
			return &v.Replicas[i]
		}
	}
	return nil
}

func findHost(v *control.View, name string) *mobula.Host {
	for i := range v.Hosts {
		if v.Hosts[i].Name == name {
			return &v.Hosts[i]
		}
	}
	return nil
}

// replicasOf gives a model's replicas.
func replicasOf(v *control.View, model string) []control.ReplicaStatus {
	var of []control.ReplicaStatus
	for _, r := range v.Replicas {
		if r.Model == model {
			of = append(of, r)
		}
	}
	return of
}

// replicasOn gives the replicas that run on a host.
func replicasOn(v *control.View, host string) []control.ReplicaStatus {
	var on []control.ReplicaStatus
	for _, r := range v.Replicas {
		if slices.Contains(r.Hosts, host) {
			on = append(on, r)
		}
	}
	return on
}

// namesOf lists the names of one kind.
func namesOf(v *control.View, kind string) []string {
	var names []string
	switch kind {
	case kindModel:
		for _, m := range v.Models {
			names = append(names, m.Name)
		}
	case kindReplica:
		for _, r := range v.Replicas {
			names = append(names, r.ID)
		}
	case kindHost:
		for _, h := range v.Hosts {
			names = append(names, h.Name)
		}
	}
	return names
}

// resolve finds which object name means, of one of these kinds; "host/gpu-1" says the kind itself. A name that no
// object has, or that several have, is an error that lists what there is.
func resolve(v *control.View, name string, among ...string) (kind, found string, err error) {
	if kind, rest, ok := strings.Cut(name, "/"); ok && slices.Contains(among, kind) && findModel(v, name) == nil {
		if found := lookup(v, kind, rest); found != "" {
			return kind, found, nil
		}
		return "", "", unknown(v, rest, kind)
	}
	var hits []string
	for _, k := range among {
		if n := lookup(v, k, name); n != "" {
			kind, found = k, n
			hits = append(hits, k)
		}
	}
	switch len(hits) {
	case 0:
		return "", "", unknown(v, name, among...)
	case 1:
		return kind, found, nil
	}
	err = fmt.Errorf("%s is the name of a %s", name, strings.Join(hits, " and of a "))
	for i, k := range hits {
		hits[i] = k + "/" + name
	}
	return "", "", hinted(err, "say which: %s", strings.Join(hits, " or "))
}

// lookup gives the full name of an object, empty for none.
func lookup(v *control.View, kind, name string) string {
	switch kind {
	case kindModel:
		if m := findModel(v, name); m != nil {
			return m.Name
		}
	case kindReplica:
		if findReplica(v, name) != nil {
			return name
		}
	case kindHost:
		if findHost(v, name) != nil {
			return name
		}
	}
	return ""
}

// unknown says that there is no such object, and which there are.
func unknown(v *control.View, name string, among ...string) error {
	err := fmt.Errorf("no %s is named %q", strings.Join(among, " or "), name)
	var there []string
	for _, kind := range among {
		there = append(there, namesOf(v, kind)...)
	}
	if len(there) == 0 {
		return hinted(err, "there is none at all: mobula get shows what there is")
	}
	for i, n := range there {
		there[i] = clean(n)
	}
	if len(there) > maxListed {
		there = append(there[:maxListed], "…")
	}
	return hinted(err, "there are: %s", strings.Join(there, ", "))
}

// completer completes arguments with the names of these kinds, up to most of them (0: any number).
func (c *ctl) completer(most int, among ...string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return c.completions(cmd.Context(), args, among...), cobra.ShellCompDirectiveNoFileComp
	}
}

// completions asks which names there are; a shell waits for it, so it is quick or silent.
func (c *ctl) completions(ctx context.Context, but []string, among ...string) []cobra.Completion {
	if ctx == nil {
		ctx = context.Background() // cobra completes without one where there is no command
	}
	ctx, cancel := context.WithTimeout(ctx, completeWithin)
	defer cancel()
	var v *control.View
	if err := c.call(ctx, func(ctx context.Context, api client.API) (err error) {
		v, err = api.View(ctx, 0)
		return err
	}); err != nil || v == nil {
		return nil
	}
	var all []cobra.Completion
	for _, kind := range among {
		for _, name := range namesOf(v, kind) {
			if !slices.Contains(but, name) && clean(name) == name {
				all = append(all, cobra.CompletionWithDesc(name, cut(c.shortly(v, kind, name), 60)))
			}
		}
	}
	return all
}

// shortly describes an object in some words.
func (c *ctl) shortly(v *control.View, kind, name string) string {
	switch kind {
	case kindModel:
		m := findModel(v, name)
		return fmt.Sprintf("model, %d/%d ready", m.Ready, m.Wanted)
	case kindReplica:
		r := findReplica(v, name)
		s := clean(fmt.Sprintf("replica of %s, %s", r.Model, r.State))
		if len(r.Hosts) > 0 {
			s += " on " + clean(strings.Join(r.Hosts, ","))
		}
		return s
	}
	h := findHost(v, name)
	return "host, " + hostState(h) + ", " + count(len(h.Devices), "GPU")
}
