package ray

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/maphash"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/gjson"

	"github.com/mobula-serve/mobula/raycluster"
)

const (
	dashboardLimit    = "10000" // what Ray gives at most (RAY_MAX_LIMIT_FROM_API_SERVER)
	dashboardMaxDead  = "5000"
	dashboardMaxDeath = 4 << 10
	dashboardPieces   = 60 // polls after a cut list that ask in pieces at once
)

// dashboardList is a list as it was last read, so that one that has not changed is not decoded again.
type dashboardList struct {
	mu      sync.Mutex
	query   string
	hash    uint64
	known   bool
	body    []byte // its room, for the next one
	size    dashboardSize
	decoded any // shared by the States made from it: not to be changed
}

// dashboardSize is how much of a list Ray has looked at and given.
type dashboardSize struct {
	total, seen, kept, given int64
	warning                  string
}

// whole tells that nothing can be missing: Ray looks at no more than its limit, and only then filters.
func (s *dashboardSize) whole() bool {
	return s.total <= s.seen && s.kept <= s.given && s.warning == ""
}

func (s *dashboardSize) partial(what string) string {
	switch {
	case s.whole():
		return ""
	case s.warning != "":
		return fmt.Sprintf("%s: %s", what, shorten(s.warning, dashboardMaxText))
	}
	return fmt.Sprintf("Ray looked at %d of %d %s: start its head with a higher RAY_MAX_LIMIT_FROM_DATA_SOURCE", min(s.seen, s.given), s.total, what)
}

// State reads actors of the namespace that are not dead, placement groups of ours that are not removed, and all nodes.
// Their maps and slices may be those of another State: they are not to be changed.
func (d *Dashboard) State(ctx context.Context, namespace string) (*State, error) {
	s := &State{At: time.Now()}
	actors, partial, err := d.actors(ctx, namespace)
	if err != nil {
		return nil, err
	}
	s.Actors = slices.Clone(actors)
	missing := []string{partial}

	size, err := d.list(ctx, &d.lists[1], "placement_groups", nil, func(rows []gjson.Result) any { return decodeGroups(rows) }, func(v any) { s.Groups, _ = v.([]Group) })
	if err != nil {
		return nil, err
	}
	s.Groups = slices.Clone(s.Groups)
	missing = append(missing, size.partial("placement groups"))

	size, err = d.list(ctx, &d.lists[2], "nodes", nil, func(rows []gjson.Result) any { return decodeNodes(rows) }, func(v any) { s.Nodes, _ = v.([]Node) })
	if err != nil {
		return nil, err
	}
	s.Nodes = slices.Clone(s.Nodes)
	missing = append(missing, size.partial("nodes"))
	s.Partial = strings.Join(slices.DeleteFunc(missing, func(m string) bool { return m == "" }), "; ")
	return s, nil
}

// actors reads those that are not dead. In a cluster where many have died the list is cut, since Ray looks at dead ones
// too; then they are asked for by state, the one thing beside the job that Ray tells apart before it cuts.
func (d *Dashboard) actors(ctx context.Context, namespace string) (all []Actor, partial string, err error) {
	d.mu.Lock()
	inPieces := d.pieces > 0
	d.pieces = max(d.pieces-1, 0)
	d.mu.Unlock()
	decode := func(rows []gjson.Result) any { return decodeActors(rows, namespace) }
	take := func(v any) {
		more, _ := v.([]Actor)
		all = append(slices.Clip(all), more...)
	}
	if !inPieces {
		size, err := d.list(ctx, &d.lists[0], "actors", []string{"ray_namespace", "=", namespace, "state", "!=", "DEAD"}, decode, take)
		if err != nil || size.whole() || size.warning != "" {
			return all, size.partial("actors"), err
		}
		d.mu.Lock()
		d.pieces = dashboardPieces
		d.mu.Unlock()
	}
	all = nil
	// In the order of a life, and those that restart again at the end: one that died in between is among them.
	for _, state := range []string{"DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING", "ALIVE", "RESTARTING"} {
		var once dashboardList
		size, err := d.list(ctx, &once, "actors", []string{"ray_namespace", "=", namespace, "state", "=", state}, decode, take)
		if err != nil {
			return nil, "", err
		}
		partial = cmp.Or(partial, size.partial("actors in state "+state))
	}
	return distinct(all), partial, nil
}

// distinct drops an actor that changed its state between two questions and was told twice, but for its last one.
func distinct(actors []Actor) []Actor {
	last := make(map[string]int, len(actors))
	for i := range actors {
		last[actors[i].ID] = i
	}
	var kept []Actor
	for i := range actors {
		if last[actors[i].ID] == i {
			kept = append(kept, actors[i])
		}
	}
	return kept
}

// Dead reads the actors of the namespace that are dead, those of the last jobs first: Ray does not tell when they died.
func (d *Dashboard) Dead(ctx context.Context, namespace string) ([]Actor, error) {
	var once dashboardList
	var dead []Actor
	filters := []string{"ray_namespace", "=", namespace, "state", "=", "DEAD"}
	_, err := d.listUpTo(ctx, &once, "actors", dashboardMaxDead, filters,
		func(rows []gjson.Result) any { return decodeActors(rows, namespace) }, func(v any) { dead, _ = v.([]Actor) })
	slices.SortStableFunc(dead, func(a, b Actor) int { return cmp.Compare(jobNumber(b.JobID), jobNumber(a.JobID)) })
	return dead, err
}

// jobNumber is the number of a job, which grows: "02000000" is 2.
func jobNumber(id string) uint32 {
	b, err := hex.DecodeString(id)
	if err != nil || len(b) != 4 {
		return 0
	}
	return binary.LittleEndian.Uint32(b)
}

// list reads one list of the state API, with filters as column, predicate, value, and gives what decode made of it, now or before.
func (d *Dashboard) list(ctx context.Context, l *dashboardList, kind string, filters []string, decode func([]gjson.Result) any, take func(any)) (dashboardSize, error) {
	return d.listUpTo(ctx, l, kind, dashboardLimit, filters, decode, take)
}

func (d *Dashboard) listUpTo(
	ctx context.Context, l *dashboardList, kind, limit string, filters []string, decode func([]gjson.Result) any, take func(any),
) (dashboardSize, error) {
	what := "list the " + strings.ReplaceAll(kind, "_", " ")
	query := url.Values{"detail": {"1"}, "limit": {limit}, "timeout": {strconv.Itoa(max(1, int(d.timeout.Seconds())-1))}}
	for f := range slices.Chunk(filters, 3) {
		query.Add("filter_keys", f[0])
		query.Add("filter_predicates", f[1])
		query.Add("filter_values", f[2])
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	asked := query.Encode()
	err := d.read(ctx, dashboardCall{what: what, method: http.MethodGet, path: "/api/v0/" + kind, query: query}, func(resp *http.Response) error {
		if n := resp.ContentLength; n > int64(cap(l.body)) && n < dashboardMaxState {
			l.body = make([]byte, 0, n+n/8+512)
		}
		var err error
		l.body, err = readBounded(l.body[:0], resp.Body, dashboardMaxState)
		return err
	})
	if err != nil {
		return dashboardSize{}, err
	}
	hash := maphash.Bytes(d.seed, l.body)
	if !l.known || l.hash != hash || l.query != asked {
		l.known = false
		rows, size, err := openList(l.body)
		if err != nil {
			return dashboardSize{}, d.failed(what, err)
		}
		l.decoded, l.size, l.hash, l.query, l.known = decode(rows), size, hash, asked, true
	}
	take(l.decoded)
	return l.size, nil
}

// openList finds the rows in an answer of the state API.
func openList(body []byte) (rows []gjson.Result, size dashboardSize, err error) {
	garbled := func() error { return fmt.Errorf("%w: %s", errGarbled, dashboardText(body)) }
	if !gjson.ValidBytes(body) {
		return nil, size, garbled()
	}
	there := false
	eachField(gjson.GetBytes(body, "data.result"), func(key, v gjson.Result) {
		switch key.Str {
		case "total":
			size.total = v.Int()
		case "num_after_truncation":
			size.seen = v.Int()
		case "num_filtered":
			size.kept = v.Int()
		case "partial_failure_warning":
			size.warning = strings.Clone(v.Str)
		case "result":
			rows, there = v.Array(), v.IsArray()
		}
	})
	if !there {
		return nil, size, garbled()
	}
	size.given = int64(len(rows))
	return rows, size, nil
}

// eachField calls do for each field of an object; what is no object has none.
func eachField(object gjson.Result, do func(key, v gjson.Result)) {
	if object.IsObject() {
		object.ForEach(func(key, v gjson.Result) bool {
			do(key, v)
			return true
		})
	}
}

// decodeActors reads the rows of one namespace: Ray's own filter takes upper and lower case for the same.
func decodeActors(rows []gjson.Result, namespace string) []Actor {
	var all []Actor
	for _, row := range rows {
		var a Actor
		ours := false
		eachField(row, func(key, v gjson.Result) {
			switch key.Str {
			case "ray_namespace":
				ours = v.Str == namespace
			case "actor_id":
				a.ID = strings.Clone(v.Str)
			case "class_name":
				a.Class = strings.Clone(v.Str)
			case "name":
				a.Name = strings.Clone(v.Str)
			case "state":
				a.State = strings.Clone(v.Str)
			case "job_id":
				a.JobID = strings.Clone(v.Str)
			case "node_id":
				a.NodeID = nodeID(v)
			case "pid":
				a.PID = int(v.Int())
			case "repr_name":
				a.Repr = strings.Clone(v.Str)
			case "num_restarts":
				a.Restarts = int(v.Int())
			case "placement_group_id":
				a.GroupID = strings.Clone(v.Str)
			case "death_cause":
				a.Death = deathText(v)
			}
		})
		if ours && a.ID != "" {
			all = append(all, a)
		}
	}
	return all
}

// nodeID reads a node's ID; null, "" and one of all f are none.
func nodeID(v gjson.Result) string {
	if strings.Trim(v.Str, "f") == "" {
		return ""
	}
	return strings.Clone(v.Str)
}

// deathText picks from a death cause what a person should read. Of a launcher's failure it is what follows
// raycluster.FailureMark, of another exception its last line.
func deathText(cause gjson.Result) string {
	var text string
	eachField(cause, func(key, v gjson.Result) {
		switch {
		case text != "": // there is but one context
		case key.Str == "creation_task_failure_context":
			text = exceptionText(v.Get("formatted_exception_string").Str)
		default:
			text = strings.TrimSpace(v.Get("error_message").Str)
		}
	})
	return keepEnds(text, dashboardMaxDeath)
}

func exceptionText(formatted string) string {
	// An exception is told twice, once as the cause of Ray's own: what ends the text is free of other things.
	if i := strings.LastIndex(formatted, raycluster.FailureMark); i >= 0 {
		return strings.TrimSpace(formatted[i+len(raycluster.FailureMark):])
	}
	return strings.Clone(lastLine(formatted))
}

// keepEnds cuts the middle out of a text that is longer than most bytes: its first line and its end say what matters.
func keepEnds(text string, most int) string {
	if len(text) <= most {
		return strings.Clone(text)
	}
	first, _, _ := strings.Cut(text, "\n")
	first = shorten(first, most/2)
	end := text[len(text)-(most-len(first)):]
	if _, rest, ok := strings.Cut(end, "\n"); ok {
		end = rest
	}
	return first + "\n" + strings.ToValidUTF8(end, "")
}

// decodeGroups reads the rows whose name says that they are ours and that are not removed: Ray lists those for ever.
func decodeGroups(rows []gjson.Result) []Group {
	var all []Group
	for _, row := range rows {
		name, state := row.Get("name").Str, row.Get("state").Str
		if _, _, _, ok := raycluster.ParseName(name); !ok || state == "REMOVED" {
			continue
		}
		g := Group{
			ID: strings.Clone(row.Get("placement_group_id").Str), Name: strings.Clone(name), State: strings.Clone(state),
			Scheduling: strings.Clone(row.Get("stats.scheduling_state").Str),
		}
		for i, b := range row.Get("bundles").Array() {
			g.Nodes = append(g.Nodes, nodeID(b.Get("node_id")))
			if i == 0 {
				g.Bundle, g.Labels = numbers(b.Get("unit_resources")), texts(b.Get("label_selector"))
			}
		}
		all = append(all, g)
	}
	return all
}

func decodeNodes(rows []gjson.Result) []Node {
	var all []Node
	for _, row := range rows {
		n := Node{
			ID: nodeID(row.Get("node_id")), IP: strings.Clone(row.Get("node_ip").Str), Name: strings.Clone(row.Get("node_name").Str),
			Head: row.Get("is_head_node").Bool(), Alive: row.Get("state").Str == "ALIVE",
			Resources: numbers(row.Get("resources_total")), Labels: texts(row.Get("labels")), Died: strings.Clone(row.Get("state_message").Str),
		}
		if n.ID != "" {
			all = append(all, n)
		}
	}
	return all
}

func numbers(object gjson.Result) map[string]float64 {
	var all map[string]float64
	eachField(object, func(key, v gjson.Result) {
		if all == nil {
			all = map[string]float64{}
		}
		all[strings.Clone(key.Str)] = v.Float()
	})
	return all
}

func texts(object gjson.Result) map[string]string {
	var all map[string]string
	eachField(object, func(key, v gjson.Result) {
		if all == nil {
			all = map[string]string{}
		}
		all[strings.Clone(key.Str)] = strings.Clone(v.String())
	})
	return all
}

var _ API = (*Dashboard)(nil)
