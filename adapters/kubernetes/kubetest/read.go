package kubetest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
)

// bookmarkEvery is how long a watch without events waits to tell how far it is.
const bookmarkEvery = time.Minute

// choice says which objects of a resource are asked for.
type choice struct {
	namespace string
	labels    labels.Selector
	fields    fields.Selector
}

// selectable are the fields that objects are selected by.
func selectable(o *object) fields.Set {
	set := fields.Set{"metadata.name": o.name, "metadata.namespace": o.namespace}
	for _, path := range [][2]string{{"spec", "nodeName"}, {"status", "phase"}, {"status", "podIP"}} {
		set[path[0]+"."+path[1]] = text(o.tree, path[0], path[1])
	}
	set["type"], set["reason"] = text(o.tree, "type"), text(o.tree, "reason")
	for _, field := range []string{"name", "namespace", "uid", "kind"} {
		set["involvedObject."+field] = text(o.tree, "involvedObject", field)
	}
	return set
}

func (q *call) selection() (choice, error) {
	s := choice{namespace: q.Namespace}
	var err error
	if s.labels, err = labels.Parse(q.query.Get("labelSelector")); err != nil {
		return s, apierrors.NewBadRequest(err.Error())
	}
	if s.fields, err = fields.ParseSelector(q.query.Get("fieldSelector")); err != nil {
		return s, apierrors.NewBadRequest(err.Error())
	}
	known := selectable(version(key{}, tree{}, 0))
	for _, r := range s.fields.Requirements() {
		if !known.Has(r.Field) {
			return s, apierrors.NewBadRequest("field label not supported: " + r.Field)
		}
	}
	return s, nil
}

func (s choice) takes(o *object) bool {
	return o != nil && (s.namespace == "" || s.namespace == o.namespace) &&
		(s.labels.Empty() || s.labels.Matches(o.labels)) && (s.fields.Empty() || s.fields.Matches(selectable(o)))
}

// of gives the objects that are selected, by namespace and name.
func (s choice) of(objects map[key]*object) []*object {
	var out []*object
	for _, o := range objects {
		if s.takes(o) {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b *object) int { return a.compare(b.key) })
	return out
}

func (c *Cluster) get(q *call) (*object, error) {
	o := q.table.objects[q.key]
	if o == nil {
		return nil, apierrors.NewNotFound(q.table.GroupResource(), q.Name)
	}
	return o, nil
}

// page is where a list goes on.
type page struct {
	Version         uint64
	Namespace, Name string // the last one that was given
}

// asked gives the version that a list or watch names, 0 for none.
func (q *call) asked() (uint64, error) {
	said := q.query.Get("resourceVersion")
	if said == "" {
		return 0, nil
	}
	version, err := strconv.ParseUint(said, 10, 64)
	if err != nil {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("invalid resource version: %q", said))
	}
	return version, nil
}

// listed finds what a list asks for, as it was at one version. more is where it goes on, empty at the end.
func (c *Cluster) listed(q *call) (found []*object, version uint64, more string, remaining int, err error) {
	chosen, err := q.selection()
	if err != nil {
		return nil, 0, "", 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	at := page{Version: c.store.version}
	asked, err := q.asked()
	switch token := q.query.Get("continue"); {
	case err != nil:
		return nil, 0, "", 0, err
	case token != "":
		text, err := base64.RawURLEncoding.DecodeString(token)
		if err != nil || json.Unmarshal(text, &at) != nil {
			return nil, 0, "", 0, apierrors.NewBadRequest("continue key is not valid")
		}
	case asked > c.store.version:
		return nil, 0, "", 0, tooNew(asked, c.store.version)
	case q.query.Get("resourceVersionMatch") == string(metav1.ResourceVersionMatchExact):
		at.Version = asked
	}
	if at.Version < q.table.first {
		return nil, 0, "", 0, expired()
	}
	found = chosen.of(q.table.asOf(at.Version))
	if at.Name != "" {
		after := key{at.Namespace, at.Name}
		begin, _ := slices.BinarySearchFunc(found, after, func(o *object, k key) int { return o.compare(k) })
		for begin < len(found) && found[begin].compare(after) <= 0 {
			begin++
		}
		found = found[begin:]
	}
	limit, _ := strconv.Atoi(q.query.Get("limit")) // no number is no limit
	if limit > 0 && limit < len(found) && q.query.Get("resourceVersion") != "0" {
		remaining = len(found) - limit
		found = found[:limit]
		last := found[limit-1]
		token, err := json.Marshal(page{Version: at.Version, Namespace: last.namespace, Name: last.name})
		if err != nil {
			return nil, 0, "", 0, err
		}
		more = base64.RawURLEncoding.EncodeToString(token)
	}
	return found, at.Version, more, remaining, nil
}

func tooNew(asked, current uint64) error {
	err := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", asked, current), 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
	return err
}

func (c *Cluster) list(w http.ResponseWriter, q *call) error {
	found, version, more, remaining, err := c.listed(q)
	if err != nil {
		return err
	}
	meta := tree{"resourceVersion": decimal(version)}
	if more != "" {
		meta["continue"], meta["remainingItemCount"] = more, remaining
	}
	kind, apiVersion := q.table.Kind+"List", q.table.apiVersion()
	if q.onlyMeta {
		kind, apiVersion = "PartialObjectMetadataList", "meta.k8s.io/v1"
	}
	head, err := json.Marshal(tree{"kind": kind, "apiVersion": apiVersion, "metadata": meta})
	if err != nil {
		return err
	}
	var out bytes.Buffer
	out.Write(bytes.TrimSuffix(head, []byte("}")))
	out.WriteString(`,"items":[`)
	for i, o := range found {
		if i > 0 {
			out.WriteByte(',')
		}
		out.Write(q.encode(o))
	}
	out.WriteString("]}")
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(out.Bytes()) // the client is gone
	return nil
}

func (q *call) encode(o *object) []byte {
	if !q.onlyMeta {
		return o.json()
	}
	encoded, err := json.Marshal(onlyMetadata(o.tree))
	if err != nil {
		panic(err) // it came from JSON
	}
	return encoded
}

// watch streams what changes, from the version that is asked for, or what there is first.
func (c *Cluster) watch(w http.ResponseWriter, r *http.Request, q *call) error {
	s := stream{call: q, w: http.NewResponseController(w), out: w, bookmarks: q.query.Get("allowWatchBookmarks") == "true"}
	var err error
	if s.choice, err = q.selection(); err != nil {
		return err
	}
	asked, err := q.asked()
	if err != nil {
		return err
	}
	initial := q.query.Get("sendInitialEvents") == "true"
	if initial && (!s.bookmarks || q.query.Get("resourceVersionMatch") != string(metav1.ResourceVersionMatchNotOlderThan)) {
		return apierrors.NewBadRequest("sendInitialEvents requires allowWatchBookmarks and resourceVersionMatch=NotOlderThan")
	}
	ctx := r.Context()
	if seconds, _ := strconv.Atoi(q.query.Get("timeoutSeconds")); seconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
		defer cancel()
	}
	c.mu.Lock()
	cut := c.cut
	old := asked > 0 && asked < q.table.first
	if asked == 0 || initial {
		s.there, asked = s.of(q.table.objects), c.store.version
	}
	c.mu.Unlock()

	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	if old && !initial {
		s.expire()
		return nil
	}
	for _, o := range s.there {
		s.send("ADDED", q.encode(o))
	}
	if initial {
		s.bookmark(asked, true)
	}
	s.flush()
	s.follow(ctx, c, cut, asked)
	return nil
}

// stream is one watch that is answered.
type stream struct {
	*call
	choice
	there     []*object
	bookmarks bool
	out       http.ResponseWriter
	w         *http.ResponseController
	failed    bool
}

// follow sends the events after a version, until the client is gone, the watch is cut or its history is lost.
func (s *stream) follow(ctx context.Context, c *Cluster, cut <-chan struct{}, after uint64) {
	idle := time.NewTicker(bookmarkEvery)
	defer idle.Stop()
	for !s.failed {
		c.mu.Lock()
		lost := after < s.table.trimmed
		events, changed, current := s.table.since(after), s.table.changed, c.store.version
		served := c.store.tables[s.table.GroupVersionResource] == s.table
		c.mu.Unlock()
		if lost {
			s.expire()
			return
		}
		for _, e := range events {
			s.event(e)
			after = e.version
		}
		s.flush()
		if !served {
			return
		}
		if len(events) > 0 {
			continue
		}
		after = max(after, current)
		select {
		case <-ctx.Done():
			return
		case <-cut:
			return
		case <-changed:
		case <-idle.C:
			if s.bookmarks {
				s.bookmark(after, false)
			}
		}
	}
}

// since gives the events after a version.
func (t *table) since(version uint64) []event {
	begin, _ := slices.BinarySearchFunc(t.events, version+1, func(e event, v uint64) int {
		switch {
		case e.version < v:
			return -1
		case e.version > v:
			return 1
		}
		return 0
	})
	return t.events[begin:len(t.events):len(t.events)]
}

// event sends a change as those see it who select: what comes to match is added to them, what no longer does is deleted.
func (s *stream) event(e event) {
	was, is := s.takes(e.old), s.takes(e.new)
	switch {
	case is && was:
		s.send("MODIFIED", s.encode(e.new))
	case is:
		s.send("ADDED", s.encode(e.new))
	case was && e.new == nil:
		s.send("DELETED", s.encode(e.gone))
	case was:
		last := e.old.draft()
		sub(last, "metadata")["resourceVersion"] = decimal(e.version)
		s.send("DELETED", s.encode(version(e.old.key, last, e.version)))
	}
}

// expire tells that what the watch asks for is no longer known.
func (s *stream) expire() {
	status, err := json.Marshal(statusOf(expired()))
	if err != nil {
		panic(err) // plain fields
	}
	s.send("ERROR", status)
	s.flush()
}

func (s *stream) bookmark(version uint64, initialEnd bool) {
	meta := tree{"resourceVersion": decimal(version)}
	if initialEnd {
		meta["annotations"] = tree{metav1.InitialEventsAnnotationKey: "true"}
	}
	o := tree{"kind": s.table.Kind, "apiVersion": s.table.apiVersion(), "metadata": meta}
	if s.onlyMeta {
		o = onlyMetadata(o)
	}
	encoded, err := json.Marshal(o)
	if err != nil {
		panic(err) // strings only
	}
	s.send("BOOKMARK", encoded)
	s.flush()
}

func (s *stream) send(kind string, o []byte) {
	if s.failed {
		return
	}
	var out bytes.Buffer
	out.WriteString(`{"type":"` + kind + `","object":`)
	out.Write(o)
	out.WriteString("}\n")
	_, err := s.out.Write(out.Bytes())
	s.failed = err != nil
}

func (s *stream) flush() {
	if err := s.w.Flush(); err != nil {
		s.failed = true
	}
}
