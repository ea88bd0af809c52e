package resources

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mobula-serve/mobula/kube"
)

// Pace of writing statuses.
const (
	statusEvery   = time.Second // between two rounds
	statusTimeout = 10 * time.Second
	statusRetry   = 5 * time.Second
)

// maxMessage bounds a message in a status, in bytes.
const maxMessage = 1024

// Status is how a fleet fares.
type Status struct {
	// Generation of the fleet that this is about: it grows with each apply.
	Generation int64
	// Models by their ids.
	Models map[string]ModelStatus
	// Routers that report, and Stale why the cluster can't be asked.
	Routers int
	Stale   string
}

// ModelStatus is how a model fares.
type ModelStatus struct {
	Wanted, Replicas, Ready int
	// Revision that is wanted, Phase of its rollout (Progressing, Complete, RolledBack or Failed) and why.
	Revision, Phase, Message string
	// Problem of its replicas, a sentence; empty when there is none.
	Problem string
	LoRAs   []LoRAStatus
}

// LoRAStatus is how a LoRA of a model fares.
type LoRAStatus struct {
	Name           string
	Wanted, Loaded int
	Error          string
}

// Report has the statuses of the objects say how the fleet fares. The newest report is what counts; it is not changed afterwards.
func (s *Source) Report(status *Status) {
	s.mu.Lock()
	s.status = status
	s.mu.Unlock()
	poke(s.writing)
}

// writeStatuses keeps the objects' statuses as they should be. Nothing is written before the first report: who only reads the
// objects, as a router does, never writes.
func (s *Source) writeStatuses(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.writing:
		}
		pause := statusEvery
		if !s.writeRound(ctx) {
			pause = statusRetry
			poke(s.writing)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// writeRound writes the statuses that differ; false when one could not be written.
func (s *Source) writeRound(ctx context.Context) bool {
	s.mu.Lock()
	status, composed, refused := s.status, s.composed, s.refused
	upToDate := s.taken == s.state.Version && status != nil && status.Generation >= s.takenAs
	why := s.state.Why
	s.mu.Unlock()
	if status == nil {
		return true
	}
	judge := judge{status: status, bad: composed.Bad, good: composed.Good, refused: refused, upToDate: upToDate, why: why}
	o := s.objects()
	good := true
	if o.Fleet != nil {
		good = s.write(ctx, Fleets(), o.Fleet, judge.fleet(o.Fleet, len(o.Models)))
	}
	for _, m := range o.Models {
		good = s.write(ctx, Models(), m, judge.model(m)) && good
	}
	for m, why := range s.strays() {
		if ownerless(m) {
			good = s.write(ctx, Models(), m, stray(m, why)) && good
		}
	}
	for _, l := range o.LoRAs {
		of, _, _ := unstructured.NestedString(l.Object, "spec", "model")
		good = s.write(ctx, LoRAs(), l, judge.lora(l, composed.Names[KindModel+"/"+of])) && good
	}
	return good
}

// reasonNoFleet is of Models whose fleet has no Fleet object.
const reasonNoFleet = "NoFleet"

// ownerless tells of a Model of no fleet that nobody else has written a status of: a control plane may be there before its Fleet is.
func ownerless(m *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(m.Object, "status", "conditions")
	return !slices.ContainsFunc(conditions, func(c any) bool {
		fields, _ := c.(map[string]any)
		return fields["reason"] != reasonNoFleet
	})
}

// stray is the status of such a Model.
func stray(m *unstructured.Unstructured, why string) map[string]any {
	return map[string]any{
		"observedGeneration": m.GetGeneration(), "phase": reasonNoFleet, "message": cut(why),
		"conditions": []any{condition(ConditionAccepted, false, reasonNoFleet, why, m.GetGeneration())},
	}
}

// write has the object's status be so, unless it is.
func (s *Source) write(ctx context.Context, gvr schema.GroupVersionResource, o *unstructured.Unstructured, want map[string]any) bool {
	now, _, _ := unstructured.NestedMap(o.Object, "status")
	want["conditions"] = carry(now["conditions"], want["conditions"].([]any))
	if reflect.DeepEqual(now, want) {
		return true
	}
	for field := range now {
		if _, stays := want[field]; !stays {
			want[field] = nil // a merge patch takes it away
		}
	}
	patch, err := json.Marshal(map[string]any{"status": want})
	if err != nil {
		s.o.Logger.ErrorContext(ctx, "a status can't be encoded", "object", goodKey(o), "err", err)
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	_, err = s.o.Client.Resource(gvr).Namespace(o.GetNamespace()).
		Patch(ctx, o.GetName(), types.MergePatchType, patch, metav1.PatchOptions{FieldManager: kube.FieldManager}, "status")
	if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
		s.o.Logger.WarnContext(ctx, "a status can't be written", "object", goodKey(o), "err", err)
	}
	return err == nil || apierrors.IsNotFound(err)
}

// carry gives the conditions with the time since when each is as it is.
func carry(before any, now []any) []any {
	old, _ := before.([]any)
	for _, each := range now {
		c := each.(map[string]any)
		c["lastTransitionTime"] = time.Now().UTC().Format(time.RFC3339)
		for _, was := range old {
			if o, ok := was.(map[string]any); ok && o["type"] == c["type"] && o["status"] == c["status"] && o["lastTransitionTime"] != nil {
				c["lastTransitionTime"] = o["lastTransitionTime"]
			}
		}
	}
	return now
}

// judge tells statuses from what is known.
type judge struct {
	status   *Status
	bad      map[string]string
	good     Good // what is in use
	refused  string
	upToDate bool   // what was composed last has been applied
	why      string // nothing can be applied
}

// base has what the statuses of all objects have: the generation that counts, and whether it is accepted.
func (j *judge) base(o *unstructured.Unstructured) (status map[string]any, accepted map[string]any) {
	generation := o.GetGeneration()
	status = map[string]any{"observedGeneration": generation}
	before, _, _ := unstructured.NestedInt64(o.Object, "status", "observedGeneration")
	switch bad := j.bad[goodKey(o)]; {
	case bad != "":
		if j.good[goodKey(o)] != nil {
			bad += " (what it was before stays)"
		}
		accepted = condition(ConditionAccepted, false, "Invalid", bad, generation)
	case j.refused != "":
		accepted = condition(ConditionAccepted, false, "Refused", j.refused+" (what it was before stays)", generation)
	case j.why != "":
		accepted = condition(ConditionAccepted, false, reasonNoFleet, j.why, generation)
	case j.upToDate:
		accepted = condition(ConditionAccepted, true, "Applied", "", generation)
	default: // soon
		accepted = condition(ConditionAccepted, false, "Pending", "the control plane has not applied it yet", generation)
		if status["observedGeneration"] = before; before == 0 {
			delete(status, "observedGeneration")
		}
	}
	return status, accepted
}

func condition(kind string, is bool, reason, message string, generation int64) map[string]any {
	value := metav1.ConditionFalse
	if is {
		value = metav1.ConditionTrue
	}
	return map[string]any{
		"type": kind, "status": string(value), "reason": reason, "message": cut(message),
		"observedGeneration": generation,
	}
}

// cut bounds a message. It is text then: encoded and read again it is the same, so that it is not written again and again.
func cut(message string) string {
	return strings.ToValidUTF8(message[:min(len(message), maxMessage)], "")
}

func (j *judge) fleet(o *unstructured.Unstructured, models int) map[string]any {
	status, accepted := j.base(o)
	ready := 0
	for _, m := range j.status.Models {
		if m.Ready >= m.Wanted {
			ready++
		}
	}
	// Who waits for the fleet, as Helm does, waits for what it says itself: each model is an object to wait for.
	is := condition(ConditionReady, accepted["status"] == string(metav1.ConditionTrue), accepted["reason"].(string), "", o.GetGeneration())
	all := condition(ConditionModelsReady, ready == len(j.status.Models), "AllReady", fmt.Sprintf("%d of %d models have as many replicas as wanted", ready, len(j.status.Models)), o.GetGeneration())
	if ready < len(j.status.Models) {
		all["reason"] = "ModelsNotReady"
	}
	phase := "Ready"
	switch {
	case accepted["status"] != string(metav1.ConditionTrue) && accepted["reason"] != "Pending":
		phase = accepted["reason"].(string)
	case j.status.Stale != "":
		phase = "Stale"
		all["message"] = cut(j.status.Stale)
	case ready < len(j.status.Models):
		phase = "Progressing"
	}
	status["models"], status["routers"], status["ready"], status["phase"] = int64(models), int64(j.status.Routers), fraction(ready, len(j.status.Models)), phase
	status["conditions"] = []any{accepted, is, all}
	return status
}

// inUseAs gives the id of the model that a Model object is in use as, empty if it is not: while it is wrong it is what it was before, and another
// object may have its name.
func (j *judge) inUseAs(o *unstructured.Unstructured) string {
	if j.bad[goodKey(o)] == "" {
		return modelID(o)
	}
	spec := j.good[goodKey(o)]
	if spec == nil {
		return ""
	}
	name, _ := spec["name"].(string)
	return cmp.Or(name, o.GetName())
}

func (j *judge) model(o *unstructured.Unstructured) map[string]any {
	status, accepted := j.base(o)
	id := j.inUseAs(o)
	m, known := j.status.Models[id]
	ready := condition(ConditionReady, known && m.Ready >= m.Wanted, "AllReady", "", o.GetGeneration())
	progressing := condition(ConditionProgressing, m.Phase == "Progressing", cmp.Or(m.Phase, "None"), m.Message, o.GetGeneration())
	switch {
	case id == "":
		ready["reason"], ready["message"] = "NotInUse", accepted["message"]
	case !known:
		ready["reason"], ready["message"] = "NotPlaced", "no replicas are asked for, or it is not applied yet"
	case m.Wanted == 0:
		ready["reason"], ready["message"] = "ScaledToZero", "the next request has a replica made"
	case m.Ready < m.Wanted:
		ready["reason"], ready["message"] = "ReplicasMissing", cut(cmp.Or(m.Problem, fmt.Sprintf("%d of %d replicas are ready", m.Ready, m.Wanted)))
	}
	phase := cmp.Or(m.Phase, "Pending")
	if accepted["status"] != string(metav1.ConditionTrue) && accepted["reason"] != "Pending" {
		phase = accepted["reason"].(string)
	}
	message := cmp.Or(m.Problem, m.Message)
	if phase == accepted["reason"] {
		message = accepted["message"].(string)
	}
	status["replicas"], status["readyReplicas"], status["desiredReplicas"] = int64(m.Replicas), int64(m.Ready), int64(m.Wanted)
	status["ready"], status["revision"], status["phase"], status["message"] = fraction(m.Ready, m.Wanted), m.Revision, phase, cut(message)
	if id != "" { // whose pods an autoscaler looks at
		status["selector"] = kube.LabelModel + "=" + kube.Label(id) + "," + kube.LabelServes + "=true"
	}
	if len(m.LoRAs) > 0 {
		loras := []any{}
		for _, l := range m.LoRAs {
			entry := map[string]any{"name": l.Name, "wanted": int64(l.Wanted), "loaded": int64(l.Loaded)}
			if l.Error != "" {
				entry["error"] = cut(l.Error)
			}
			loras = append(loras, entry)
		}
		status["loras"] = loras
	}
	status["conditions"] = append([]any{accepted, ready, progressing}, waits(phase, message, o.GetGeneration())...)
	return status
}

// waits are conditions by which tools that know nothing of Models see whether to wait for one or to give up, where Ready, which is whether it serves,
// is not enough: kstatus of Kubernetes' cli-utils, which Helm 4 and Flux go by. They are there only while they are true.
func waits(phase, message string, generation int64) []any {
	switch phase {
	case "Progressing":
		return []any{condition("Reconciling", true, phase, message, generation)}
	case "RolledBack", "Failed", "Invalid", "Refused":
		return []any{condition("Stalled", true, phase, message, generation)}
	}
	return nil
}

// lora is the status of a LoRA object of the model with this id.
func (j *judge) lora(o *unstructured.Unstructured, model string) map[string]any {
	status, accepted := j.base(o)
	name, _, _ := unstructured.NestedString(o.Object, "spec", "name")
	name = cmp.Or(name, o.GetName())
	var l LoRAStatus
	if i := slices.IndexFunc(j.status.Models[model].LoRAs, func(l LoRAStatus) bool { return l.Name == name }); i >= 0 {
		l = j.status.Models[model].LoRAs[i]
	}
	ready := condition(ConditionReady, l.Wanted > 0 && l.Loaded >= l.Wanted, "Loaded", l.Error, o.GetGeneration())
	if ready["status"] != string(metav1.ConditionTrue) {
		ready["reason"] = "NotLoaded"
	}
	phase := ready["reason"].(string)
	if accepted["reason"] == "Invalid" || accepted["reason"] == "Refused" {
		phase = accepted["reason"].(string)
	}
	status["model"], status["ready"], status["phase"] = model, fraction(l.Loaded, l.Wanted), phase
	status["wanted"], status["loaded"] = int64(l.Wanted), int64(l.Loaded)
	status["conditions"] = []any{accepted, ready}
	return status
}

func fraction(part, of int) string { return strconv.Itoa(part) + "/" + strconv.Itoa(of) }
