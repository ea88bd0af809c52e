package resources

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/mobula-serve/mobula"
)

// Objects are those of one fleet as the cluster has them.
type Objects struct {
	// Fleet is nil while there is none.
	Fleet  *unstructured.Unstructured
	Models []*unstructured.Unstructured
	LoRAs  []*unstructured.Unstructured
}

// Good is what was accepted last of objects that may have become bad since: their specs by kind and name.
type Good map[string]map[string]any

func goodKey(o *unstructured.Unstructured) string { return o.GetKind() + "/" + o.GetName() }

// appliedKey is that of a model which was applied, whatever its object is called.
func appliedKey(id string) string { return "applied/" + id }

// Composed is a fleet made of objects.
type Composed struct {
	// File is the fleet file, YAML; nil without a Fleet object, or with one that has never been right.
	File []byte
	// Bad says what is wrong with an object, by kind and name (Model/chat). What was right of it before is in File.
	Bad map[string]string
	// Names are the ids of the models and LoRAs that Model and LoRA objects stand for.
	Names map[string]string
	// Good is to be given to the next Compose.
	Good Good
}

// Veto is what somebody who knows more has against objects, by kind and name.
type Veto map[string]string

// Compose makes the fleet file. An object that is wrong, or that veto names, never takes part in it: its last good spec does, if there is one. Of two objects of
// one name the older one has it.
func Compose(o Objects, good Good, veto Veto) Composed {
	c := Composed{Bad: map[string]string{}, Names: map[string]string{}, Good: Good{}}
	if o.Fleet == nil {
		c.Good = good
		return c
	}
	parts := newParts(o, good, &c)
	parts.heed(veto, &c)
	// Each turn leaves out a part that is wrong, or makes do with its last good spec.
	for range 2*len(parts.models) + 3 {
		doc, entries := parts.document()
		file, err := yaml.Marshal(doc)
		if err != nil {
			c.Bad[goodKey(o.Fleet)] = err.Error()
			return c
		}
		_, err = mobula.Load(file, "objects")
		var wrong *mobula.FileError
		if !errors.As(err, &wrong) {
			if err != nil {
				c.Bad[goodKey(o.Fleet)] = err.Error()
				return c
			}
			c.File = file
			parts.keep(c.Good)
			return c
		}
		if !parts.blame(wrong, entries, &c) {
			return c
		}
	}
	return c
}

// part is an object that takes part with one of its specs.
type part struct {
	key   string
	entry map[string]any // a model's entry in the fleet file, or the fleet's sections
	spec  map[string]any // that it was made from
	older map[string]any // the last good spec, nil for none or once it is in use
	out   bool
}

type parts struct {
	name   string
	fleet  part
	models []part
	loras  map[string][]loraPart // by Model object
}

type loraPart struct {
	key   string
	entry map[string]any
}

func newParts(o Objects, good Good, c *Composed) *parts {
	p := &parts{name: o.Fleet.GetName(), loras: map[string][]loraPart{}}
	p.fleet = newPart(o.Fleet, good)
	slices.SortFunc(o.Models, byAge)
	for _, m := range o.Models {
		p.models = append(p.models, newPart(m, good))
		c.Names[goodKey(m)] = modelID(m)
	}
	slices.SortFunc(o.LoRAs, byAge)
	for _, l := range o.LoRAs {
		spec := specOf(l)
		of, _ := spec["model"].(string)
		entry := maps.Clone(spec)
		delete(entry, "model")
		if id, _ := entry["name"].(string); id == "" {
			entry["name"] = l.GetName()
		}
		c.Names[goodKey(l)], _ = entry["name"].(string)
		if !slices.ContainsFunc(o.Models, func(m *unstructured.Unstructured) bool { return m.GetName() == of }) {
			c.Bad[goodKey(l)] = fmt.Sprintf("spec.model: there is no Model object %q in namespace %s", of, l.GetNamespace())
			continue
		}
		p.loras["Model/"+of] = append(p.loras["Model/"+of], loraPart{goodKey(l), entry})
	}
	return p
}

// heed has what is vetoed make do with what it was.
func (p *parts) heed(veto Veto, c *Composed) {
	for i := range p.models {
		if why := veto[p.models[i].key]; why != "" {
			note(c.Bad, p.models[i].key, "", why)
			p.models[i].fallBack()
		}
	}
}

// fallBack has the part be its last good spec; without one it is out.
func (p *part) fallBack() {
	if p.older == nil || reflect.DeepEqual(p.older, p.spec) {
		p.out = true
		return
	}
	kind, name, _ := strings.Cut(p.key, "/")
	p.spec, p.older, p.entry = p.older, nil, entryOf(kind, name, p.older)
}

func newPart(o *unstructured.Unstructured, good Good) part {
	older := good[goodKey(o)]
	if older == nil && o.GetKind() == KindModel {
		older = good[appliedKey(modelID(o))]
	}
	return part{key: goodKey(o), spec: specOf(o), older: older, entry: entryOf(o.GetKind(), o.GetName(), specOf(o))}
}

func byAge(a, b *unstructured.Unstructured) int {
	if c := a.GetCreationTimestamp().Compare(b.GetCreationTimestamp().Time); c != 0 {
		return c
	}
	return strings.Compare(a.GetName(), b.GetName())
}

func specOf(o *unstructured.Unstructured) map[string]any {
	spec, _, _ := unstructured.NestedMap(o.Object, "spec") // a copy; nil when it is no map
	if spec == nil {
		spec = map[string]any{}
	}
	return spec
}

// modelID is the id of the model that a Model object stands for.
func modelID(m *unstructured.Unstructured) string {
	if id, _, _ := unstructured.NestedString(m.Object, "spec", "name"); id != "" {
		return id
	}
	return m.GetName()
}

// entryOf gives what stands in the fleet file for an object.
func entryOf(kind, name string, spec map[string]any) map[string]any {
	entry := maps.Clone(spec)
	if kind == KindFleet {
		if entry["platform"] == nil {
			entry["platform"] = map[string]any{"kubernetes": map[string]any{}}
		}
		return entry
	}
	delete(entry, "fleet")
	if id, _ := entry["name"].(string); id == "" {
		entry["name"] = name
	}
	if r, ok := entry["range"].(map[string]any); ok {
		entry["replicas"] = fmt.Sprintf("%v-%v", r["min"], r["max"])
	}
	delete(entry, "range")
	return entry
}

// document gives the fleet file as it would be, and which part each of its models is.
func (p *parts) document() (doc map[string]any, entries []*part) {
	doc = maps.Clone(p.fleet.entry)
	doc["apiVersion"], doc["kind"], doc["name"] = mobula.APIVersion, mobula.Kind, p.name
	var models []any
	for i := range p.models {
		m := &p.models[i]
		if m.out {
			continue
		}
		entry := maps.Clone(m.entry)
		if more := p.loras[m.key]; len(more) > 0 {
			loras, _ := entry["loras"].([]any)
			loras = slices.Clone(loras)
			for _, l := range more {
				loras = append(loras, l.entry)
			}
			entry["loras"] = loras
		}
		models, entries = append(models, entry), append(entries, m)
	}
	if len(models) > 0 {
		doc["models"] = models
	}
	return doc, entries
}

var (
	modelField = regexp.MustCompile(`^models\[(\d+)\]\.?`)
	loraField  = regexp.MustCompile(`^loras\[(\d+)\]\.?`)
)

// blame finds the objects that are wrong and has them make do with what they were; false when nothing is left to try.
func (p *parts) blame(wrong *mobula.FileError, entries []*part, c *Composed) bool {
	blamed := map[*part]bool{}
	for _, problem := range wrong.Problems {
		at, field := &p.fleet, problem.Field
		if m := modelField.FindStringSubmatch(field); m != nil {
			i, _ := strconv.Atoi(m[1])
			at, field = entries[min(i, len(entries)-1)], strings.TrimPrefix(field, m[0])
			if p.blameLoRA(at, field, problem.Message, c) {
				continue
			}
		}
		note(c.Bad, at.key, field, problem.Message)
		blamed[at] = true
	}
	for at := range blamed {
		if at.fallBack(); at.out && at == &p.fleet {
			return false
		}
	}
	return true
}

// blameLoRA leaves out a LoRA object when the problem is its own.
func (p *parts) blameLoRA(m *part, field, message string, c *Composed) bool {
	found := loraField.FindStringSubmatch(field)
	if found == nil {
		return false
	}
	own, _ := m.entry["loras"].([]any)
	i, _ := strconv.Atoi(found[1])
	more := p.loras[m.key]
	if i -= len(own); i < 0 || i >= len(more) {
		return false
	}
	note(c.Bad, more[i].key, strings.TrimPrefix(field, found[0]), message)
	p.loras[m.key] = slices.Delete(slices.Clone(more), i, i+1)
	return true
}

// note adds a problem to those of an object.
func note(bad map[string]string, key, field, message string) {
	if field != "" {
		message = "spec." + field + ": " + message
	}
	if before := bad[key]; before != "" && before != message {
		message = before + "; " + message
	}
	bad[key] = message
}

// keep notes the specs that are in use.
func (p *parts) keep(good Good) {
	good[p.fleet.key] = p.fleet.spec
	for _, m := range p.models {
		if !m.out {
			good[m.key] = m.spec
		}
	}
}
