package ctl

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

// maxDescribed bounds the events that describe shows, the latest ones.
const maxDescribed = 20

func (c *ctl) describeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "describe [model|replica|host] NAME",
		Short: "Show all that is known of a model, a replica or a host",
		Long: `Shows all that is known of one model, replica or host, why it is as it is first and what
happened to it last. The NAME alone is enough unless several kinds of objects have it.`,
		Example: `  mobula describe llama

  # Why does it not get ready?
  mobula describe replica llama-3fa9c1-xk2p4

  mobula describe host gpu-1`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			among := kinds()
			if len(args) == 2 {
				if !slices.Contains(among, args[0]) {
					return usagef("what is %q? want one of %s", args[0], strings.Join(among, ", "))
				}
				among = args[:1]
			}
			return c.describe(cmd.Context(), args[len(args)-1], among)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			switch {
			case len(args) == 0:
				return c.completions(cmd.Context(), nil, kinds()...), cobra.ShellCompDirectiveNoFileComp
			case len(args) == 1 && slices.Contains(kinds(), args[0]):
				return c.completions(cmd.Context(), nil, args[0]), cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

func (c *ctl) describe(ctx context.Context, name string, among []string) error {
	return c.call(ctx, func(ctx context.Context, api client.API) error {
		v, err := api.View(ctx, 0)
		if err != nil {
			return err
		}
		kind, name, err := resolve(v, name, among...)
		if err != nil {
			return err
		}
		events, err := api.Events(ctx, 0, false)
		if err != nil {
			return err
		}
		s := &sheet{console: c.out}
		objects := []string{kind + "/" + name}
		switch kind {
		case kindModel:
			for _, r := range replicasOf(v, name) {
				objects = append(objects, kindReplica+"/"+r.ID)
			}
			c.describeModel(s, v, findModel(v, name))
		case kindReplica:
			c.describeReplica(s, findReplica(v, name))
		case kindHost:
			c.describeHost(s, v, findHost(v, name))
		}
		s.table("Events", c.eventTable(eventsOf(events, objects)))
		c.out.print(s.String())
		c.warnStale(v)
		return nil
	})
}

// eventsOf gives the last events of these objects.
func eventsOf(all []control.Event, objects []string) []control.Event {
	var of []control.Event
	for _, e := range all {
		if slices.Contains(objects, e.Object) {
			of = append(of, e)
		}
	}
	return of[max(0, len(of)-maxDescribed):]
}

// sheet is lines of "Key: value" and tables under headings.
type sheet struct {
	*console
	b strings.Builder
}

// title opens the sheet.
func (s *sheet) title(kind, name string) {
	s.b.WriteString(kind + " " + s.paint(strong, clean(name)) + "\n")
}

// field adds a line, unless there is no value.
func (s *sheet) field(key, value string) { s.coloured(key, "", value) }

func (s *sheet) coloured(key, code, value string) {
	if value = clean(value); value != "" && value != none {
		fmt.Fprintf(&s.b, "  %-14s%s\n", key+":", s.paint(code, value))
	}
}

// table adds a table, unless it is empty.
func (s *sheet) table(heading string, t *table) {
	if len(t.rows) == 0 {
		return
	}
	s.b.WriteString("\n" + s.paint(strong, heading) + "\n")
	for _, line := range t.lines(0, false, s.colour) {
		s.b.WriteString("  " + line + "\n")
	}
}

func (s *sheet) String() string { return s.b.String() }

func (c *ctl) describeModel(s *sheet, v *control.View, m *control.ModelStatus) {
	s.title(kindModel, m.Name)
	s.coloured("Rollout", phaseColour(m.Rollout), c.sentence(string(m.Rollout), c.since(m.Since), m.Reason))
	s.coloured("Ready", readiness(m).code, fmt.Sprintf("%d of %d wanted%s", m.Ready, m.Wanted, otherStates(m)))
	wanted := m.Replicas.String() + " by the fleet file"
	if m.Scaled {
		wanted += fmt.Sprintf("; mobula scale has set %d", m.Wanted)
	}
	s.field("Replicas", wanted)
	s.field("Scaling", m.ScaleReason)
	l := m.Load
	s.field("Load", fmt.Sprintf("%s req/s, %d held, %d failed", rate(float64(l.Requests)/reportWindow), l.Held, l.Failed))
	if l.OldestHeld > 0 {
		s.field("Oldest held", seconds(l.OldestHeld))
	}
	if l.Answered > 0 {
		s.field("TTFT", fmt.Sprintf("p50 %s, p90 %s", seconds(l.TTFT50), seconds(l.TTFT90)))
		s.field("ITL", fmt.Sprintf("p50 %s, p90 %s", seconds(l.ITL50), seconds(l.ITL90)))
	}
	if !l.LastRequest.IsZero() {
		s.field("Last request", c.since(l.LastRequest)+" ago")
	}
	s.field("Source", m.Source)
	s.field("Aliases", strings.Join(m.Aliases, ", "))
	s.field("Revision", m.Revision)
	s.field("Previous", m.Previous)
	s.table("Replicas", c.replicaTable(replicasOf(v, m.Name), false))
	s.table("LoRAs", loraTable(loras(&control.View{Models: []control.ModelStatus{*m}})))
}

// otherStates gives the replicas that are not ready, by state.
func otherStates(m *control.ModelStatus) string {
	var s strings.Builder
	for _, state := range []struct {
		n    int
		name string
	}{{m.Starting, "starting"}, {m.Asleep, "asleep"}, {m.Draining, "draining"}, {m.Failed, "failed"}} {
		if state.n > 0 {
			fmt.Fprintf(&s, ", %d %s", state.n, state.name)
		}
	}
	return s.String()
}

// sentence gives "Starting for 40s: loading weights".
func (c *ctl) sentence(state, since, reason string) string {
	if since != none {
		state += " for " + since
	}
	if reason != "" {
		state += ": " + reason
	}
	return state
}

func (c *ctl) describeReplica(s *sheet, r *control.ReplicaStatus) {
	s.title(kindReplica, r.ID)
	s.coloured("State", stateColour(r.State), c.sentence(string(r.State), c.since(r.Since), r.Reason))
	if r.NoRoom {
		s.coloured("Room", yellow, "none: it waits for resources that others hold, or that nobody has")
	}
	if r.Cordoned {
		s.coloured("Held back", yellow, "by mobula drain, until mobula drain "+r.ID+" --off")
	}
	s.field("Model", r.Model)
	s.field("Revision", r.Revision)
	for i, host := range r.Hosts {
		where := host
		if i < len(r.Devices) && r.Devices[i] != "" {
			where += ", GPU " + r.Devices[i]
		}
		s.field("Host", where)
	}
	s.field("URL", r.URL)
	s.field("Restarts", strconv.Itoa(r.Restarts))
	if l := r.Load; l != nil {
		inFlight, running, waiting, kv := load(l)
		s.field("Router", c.sentence("says "+l.State, none, l.Reason))
		s.field("Load", fmt.Sprintf("%s in flight, %s running, %s waiting, KV %s, %d tokens wait for prefill", inFlight, running, waiting, kv, l.WaitingTokens))
		if l.PrefillRate > 0 {
			s.field("Prefill", fmt.Sprintf("%.0f tokens/s", l.PrefillRate))
		}
	}
	s.field("LoRAs", strings.Join(r.LoRAs, ", "))
	s.field("Detail", r.Detail)
}

func (c *ctl) describeHost(s *sheet, v *control.View, h *mobula.Host) {
	s.title(kindHost, h.Name)
	s.coloured("State", hostColour(h), c.sentence(hostState(h), none, h.Silent))
	if h.Cordoned {
		s.coloured("Cordoned", yellow, "it gets no new replicas, until mobula cordon "+h.Name+" --off")
	}
	if h.Silent != "" && !h.Heard.IsZero() {
		s.field("Heard", c.since(h.Heard)+" ago")
	}
	u := usages(v)[h.Name]
	if u.devices > 0 {
		gpus := fmt.Sprintf("%d of %d taken", u.taken, u.devices)
		if u.total > 0 {
			gpus += ", memory " + u.memory() + ", utilization " + u.utilization()
		}
		s.field("GPUs", gpus)
	}
	s.field("Slots", fmt.Sprintf("%d for engines without a GPU", h.Slots))
	s.field("Address", h.Address)
	s.field("Labels", labels(h.Labels))
	s.field("Agent", h.Version)
	gpus := newTable(column{name: "ID"}, column{name: "NAME"}, column{name: "MEMORY"}, column{name: "UTIL"}, column{name: "NVLINK"}, column{name: "REPLICA"}, column{name: "REASON", flex: true})
	for _, d := range h.Devices {
		used, busy := none, none
		if d.Memory > 0 {
			used, busy = memory(d.Used)+"/"+memory(d.Memory), percent(d.Utilization)
		}
		gpus.add(d.ID, d.Name, used, busy, d.Group, holder(v, h.Name, d.ID), cell{d.Unhealthy, red})
	}
	s.table("GPUs", gpus)
	s.table("Replicas", c.replicaTable(replicasOn(v, h.Name), false))
}

// holder gives the replica that has a device.
func holder(v *control.View, host, device string) string {
	for _, r := range v.Replicas {
		for i, on := range r.Hosts {
			if on == host && i < len(r.Devices) && slices.Contains(strings.Split(r.Devices[i], ","), device) {
				return r.ID
			}
		}
	}
	return ""
}
