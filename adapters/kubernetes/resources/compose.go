package resources

import (
	"bytes"
	"encoding/json"
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

// of gives the last good spec of an object, nil when it has none.
func (g Good) of(o *unstructured.Unstructured) map[string]any {
	if spec := g[goodKey(o)]; spec != nil || o.GetKind() != KindModel {
		return spec
	}
	return g[appliedKey(modelID(o))]
}

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

// Veto is what somebody who knows more has against Models, by kind and name.
type Veto map[string]objection

// objection is why a Model can't be, and what it is against.
type objection struct {
	why string
	// older: even as the Model was when it was good last. alone: with the Fleet as that was good last, too.
	older, alone bool
}

// Compose makes the fleet file. An object that is wrong, or that veto names, never takes part in it: its last good spec does, if there is one. What was
// good and has not changed makes room for nobody: of objects that can't go together the ones that are new or changed do, and of these LoRAs before Models,
// younger before older.
func Compose(o Objects, good Good, veto Veto) Composed {
	c := Composed{Bad: map[string]string{}, Names: map[string]string{}, Good: good}
	if o.Fleet == nil {
		return c
	}
	parts := newParts(o, good, &c)
	parts.heed(veto, &c)
	parts.follow(o.Fleet.GetNamespace(), &c)
	// Each turn a part that is new or changed makes do with its last good spec or is left out; without any, one that was good is left out.
	for range 2*len(parts.all) + 1 {
		doc, placed := parts.document()
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
			c.File, c.Good = file, Good{}
			for _, at := range parts.in() {
				c.Good[at.key] = at.spec
			}
			return c
		}
		if parts.blame(wrong, placed, &c); parts.fleet().out {
			return c
		}
		parts.follow(o.Fleet.GetNamespace(), &c)
	}
	return c
}

// part is an object that takes part with one of its specs.
type part struct {
	kind, key string
	entry     map[string]any // a model's or a LoRA's entry in the fleet file, or the fleet's sections
	spec      map[string]any // that it was made from
	older     map[string]any // the last good spec, nil for none
	fresh     bool           // it is new or changed: spec is not what was good last
	out       bool
}

type parts struct {
	name string
	// all, who has the first right first: the Fleet, the Models and the LoRAs by age.
	all  []*part
	many int // how many are left out next when nobody knows which
}

func (p *parts) fleet() *part { return p.all[0] }

func newParts(o Objects, good Good, c *Composed) *parts {
	p := &parts{name: o.Fleet.GetName(), all: []*part{newPart(o.Fleet, good.of(o.Fleet))}, many: 1}
	slices.SortFunc(o.Models, byAge)
	heirs := map[string]bool{}
	for _, m := range o.Models {
		older := good.of(m)
		if good[goodKey(m)] == nil { // of two of one name the older one is what was applied
			if heirs[modelID(m)] {
				older = nil
			}
			heirs[modelID(m)] = true
		}
		p.all = append(p.all, newPart(m, older))
		c.Names[goodKey(m)] = modelID(m)
	}
	slices.SortFunc(o.LoRAs, byAge)
	for _, l := range o.LoRAs {
		at := newPart(l, good.of(l))
		c.Names[at.key], _ = at.entry["name"].(string)
		p.all = append(p.all, at)
	}
	return p
}

// model is the key of a LoRA's Model.
func (p *part) model() string {
	of, _ := p.spec["model"].(string)
	return KindModel + "/" + of
}

// heed has what is vetoed make do with what it was. A Model that is as it was has the Fleet do so, when that has changed.
func (p *parts) heed(veto Veto, c *Composed) {
	changed, back := p.mayYield(p.fleet()), false
	for _, m := range p.all {
		v, against := veto[m.key]
		if !against {
			continue
		}
		older, alone := v.older || !m.fresh, v.alone || !changed
		if older && !alone {
			note(c.Bad, p.fleet().key, "", "with it "+m.title()+" can't be: "+v.why)
			back = true
		}
		if m.fresh || alone {
			note(c.Bad, m.key, "", v.why)
			m.fallBack()
		}
		m.out = m.out || older && alone
	}
	if back {
		p.fleet().fallBack()
	}
}

// follow has LoRAs whose Model is not there make do with what they were.
func (p *parts) follow(namespace string, c *Composed) {
	models := map[string]*part{}
	for _, at := range p.all {
		if at.kind == KindModel {
			models[at.key] = at
		}
		for at.kind == KindLoRA && !at.out && (models[at.model()] == nil || models[at.model()].out) {
			_, of, _ := strings.Cut(at.model(), "/")
			why := fmt.Sprintf("spec.model: there is no Model object %q in namespace %s", of, namespace)
			if models[at.model()] != nil {
				why = fmt.Sprintf("spec.model: Model object %s is not in use", of)
			}
			if c.Bad[at.key] == "" { // else it is said what is wrong with it as it is
				c.Bad[at.key] = why
			}
			at.fallBack()
		}
	}
}

// fallBack has the part be its last good spec; without one, or when it is that already, it is out.
func (p *part) fallBack() {
	if !p.fresh || p.older == nil {
		p.out = true
		return
	}
	_, name, _ := strings.Cut(p.key, "/")
	p.spec, p.entry, p.fresh = p.older, entryOf(p.kind, name, p.older), false
}

// title names the part's object in a sentence.
func (p *part) title() string { return strings.Replace(p.key, "/", " ", 1) }

func newPart(o *unstructured.Unstructured, older map[string]any) *part {
	p := &part{kind: o.GetKind(), key: goodKey(o), spec: specOf(o), older: older, entry: entryOf(o.GetKind(), o.GetName(), specOf(o))}
	p.fresh = older == nil || changed(o, p.spec, older)
	return p
}

// changed tells whether an object's spec says something else than another one. One of them may come from a fleet file, which has other types of numbers.
func changed(o *unstructured.Unstructured, now, before map[string]any) bool {
	if reflect.DeepEqual(now, before) {
		return false
	}
	if o.GetKind() == KindLoRA {
		return true
	}
	x, errNow := json.Marshal(entryOf(o.GetKind(), o.GetName(), now))
	y, errBefore := json.Marshal(entryOf(o.GetKind(), o.GetName(), before))
	return errNow != nil || errBefore != nil || !bytes.Equal(x, y)
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
	delete(entry, map[string]string{KindModel: "fleet", KindLoRA: "model"}[kind]) // it is where the entry stands
	if id, _ := entry["name"].(string); id == "" {
		entry["name"] = name
	}
	if r, ok := entry["range"].(map[string]any); ok {
		entry["replicas"] = fmt.Sprintf("%v-%v", r["min"], r["max"])
	}
	delete(entry, "range")
	return entry
}

// in are the parts that are in the document.
func (p *parts) in() []*part {
	return slices.DeleteFunc(slices.Clone(p.all), func(at *part) bool { return at.out })
}

// placed is a model of the document: its own part, those of its LoRA objects, and how many LoRAs it has itself.
type placed struct {
	model *part
	loras []*part
	own   int
}

// document gives the fleet file as it would be, and which parts each of its models is.
func (p *parts) document() (doc map[string]any, all []placed) {
	doc = maps.Clone(p.fleet().entry)
	doc["apiVersion"], doc["kind"], doc["name"] = mobula.APIVersion, mobula.Kind, p.name
	loras := map[string][]*part{}
	for _, at := range p.in() {
		if at.kind == KindLoRA {
			loras[at.model()] = append(loras[at.model()], at)
		}
	}
	var models []any
	for _, m := range p.in() {
		if m.kind != KindModel {
			continue
		}
		entry := maps.Clone(m.entry)
		own, _ := entry["loras"].([]any)
		all = append(all, placed{m, loras[m.key], len(own)})
		if len(loras[m.key]) > 0 {
			own = slices.Clone(own)
			for _, l := range loras[m.key] {
				own = append(own, l.entry)
			}
			entry["loras"] = own
		}
		models = append(models, entry)
	}
	if len(models) > 0 {
		doc["models"] = models
	}
	return doc, all
}

var (
	modelField = regexp.MustCompile(`^models\[(\d+)\]\.?`)
	loraField  = regexp.MustCompile(`^loras\[(\d+)\]\.?`)
	nameField  = regexp.MustCompile(`^(name|aliases\[\d+\]|loras\[\d+\]\.name)$`)
)

// finding is a problem of a part.
type finding struct {
	at             *part
	field, message string
	loras          []*part // of the Model, when the problem is that it has any
}

// find gives the part that a problem of the document is at.
func (p *parts) find(problem mobula.Problem, all []placed) finding {
	found := finding{at: p.fleet(), field: problem.Field, message: problem.Message}
	m := modelField.FindStringSubmatch(problem.Field)
	if m == nil || len(all) == 0 {
		return found
	}
	i, _ := strconv.Atoi(m[1])
	model := all[min(i, len(all)-1)]
	found.at, found.field = model.model, strings.TrimPrefix(problem.Field, m[0])
	if found.field == "loras" {
		found.loras = model.loras
	}
	if l := loraField.FindStringSubmatch(found.field); l != nil {
		if i, _ = strconv.Atoi(l[1]); i >= model.own && i-model.own < len(model.loras) {
			found.at, found.field = model.loras[i-model.own], strings.TrimPrefix(found.field, l[0])
		}
	}
	return found
}

// blame has parts that are new or changed make do with what they were, so that the problems go. What was good is left out only when none of those is left.
func (p *parts) blame(wrong *mobula.FileError, all []placed, c *Composed) {
	clashes, yielding := p.clashes(), map[*part]bool{}
	var found []finding
	for _, problem := range wrong.Problems {
		found = append(found, p.find(problem, all))
	}
	// A name that is taken may be free again without what else is wrong, and all may be right with the Fleet as it was.
	plain := slices.DeleteFunc(slices.Clone(found), func(f finding) bool { return len(clashes) > 0 && nameField.MatchString(f.field) })
	back := slices.ContainsFunc(plain, func(f finding) bool { return slices.Contains(p.culprits(f), p.fleet()) })
	for _, f := range plain {
		for _, at := range p.culprits(f) {
			if !back || at == p.fleet() {
				f.note(at, c)
				yielding[at] = true
			}
		}
	}
	if len(yielding) == 0 {
		for at, why := range clashes {
			note(c.Bad, at.key, "", why)
			yielding[at] = true
		}
	}
	if len(yielding) == 0 {
		for _, at := range p.suspects() {
			found[0].note(at, c)
			yielding[at] = true
		}
	}
	if len(yielding) == 0 {
		for _, f := range found {
			f.note(f.at, c)
			yielding[f.at] = true
		}
	}
	for at := range yielding {
		at.fallBack()
	}
}

// note tells an object of the problem that has it yield.
func (f *finding) note(to *part, c *Composed) {
	if to == f.at {
		note(c.Bad, to.key, f.field, f.message)
		return
	}
	bad := map[string]string{}
	note(bad, "", f.field, f.message)
	note(c.Bad, to.key, "", "with it "+f.at.title()+" would be wrong: "+bad[""])
}

// culprits are the new or changed parts that a problem comes of, as far as that is plain: what is not right of a Model comes of its LoRAs when it may have none,
// of itself, or of the Fleet.
func (p *parts) culprits(f finding) []*part {
	fresh := slices.DeleteFunc(slices.Clone(f.loras), func(l *part) bool { return !l.fresh })
	switch {
	case len(fresh) > 0:
		return fresh
	case f.at.fresh:
		return []*part{f.at}
	case !nameField.MatchString(f.field) && p.mayYield(p.fleet()):
		return []*part{p.fleet()}
	}
	return nil
}

// mayYield tells whether a part may make room for others: a Fleet that has never been good may not, without it there is nothing.
func (p *parts) mayYield(at *part) bool { return at.fresh && (at != p.fleet() || at.older != nil) }

// clashes are the new or changed parts that have a name of another part, and which.
func (p *parts) clashes() map[*part]string {
	found, taken := map[*part]string{}, map[string]*part{}
	for _, fresh := range []bool{false, true} { // what was good has its names first
		for _, at := range p.in()[1:] {
			if at.fresh != fresh {
				continue
			}
			fields, names := at.names()
			if i := slices.IndexFunc(names, func(name string) bool { return taken[name] != nil }); i >= 0 && fresh {
				found[at] = fmt.Sprintf("spec.%s: %q is a name of %s already", fields[i], names[i], taken[names[i]].title())
				continue // so its other names are free
			}
			for _, name := range names {
				taken[name] = at
			}
		}
	}
	return found
}

// names are those that a Model or LoRA has in the fleet, and their fields.
func (p *part) names() (fields, names []string) {
	add := func(field string, name any) {
		if name, ok := name.(string); ok {
			fields, names = append(fields, field), append(names, name)
		}
	}
	add("name", p.entry["name"])
	aliases, _ := p.entry["aliases"].([]any)
	for i, name := range aliases {
		add(fmt.Sprintf("aliases[%d]", i), name)
	}
	loras, _ := p.entry["loras"].([]any)
	for i, each := range loras {
		if l, ok := each.(map[string]any); ok {
			add(fmt.Sprintf("loras[%d].name", i), l["name"])
		}
	}
	return fields, names
}

// suspects are the last of the new or changed parts, for problems of which nobody knows where they come from. Each time they are twice as many, so that
// thousands of objects are not composed thousands of times.
func (p *parts) suspects() []*part {
	fresh := slices.DeleteFunc(p.in(), func(at *part) bool { return !p.mayYield(at) })
	fresh = fresh[max(0, len(fresh)-p.many):]
	p.many *= 2
	return fresh
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
