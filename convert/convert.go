// Package convert makes values of charts/mobula out of those of other serving stacks. It reads and writes nothing by itself.
package convert

import (
	"errors"
	"fmt"
	"slices"

	"github.com/mobula-serve/mobula"
)

// MaxFileSize bounds one file of values, in bytes.
const MaxFileSize = 1 << 20

// ErrTooLarge is wrapped by the error for a file of more than MaxFileSize.
var ErrTooLarge = errors.New("too large")

// File is one file of values.
type File struct {
	// Name stands for the file in errors.
	Name string
	// Data is YAML, at most MaxFileSize bytes.
	Data []byte
}

// Severity says what somebody has to do about a Note.
type Severity string

// The severities.
const (
	// Dropped is what has no counterpart: it is not in the values.
	Dropped Severity = "dropped"
	// Changed is what Mobula does in another way.
	Changed Severity = "changed"
	// Action is what has to be done by hand for the values to work.
	Action Severity = "action"
)

// Note tells of one value that did not become one of ours as it was.
type Note struct {
	// Path of the value in the file that was converted, such as servingEngineSpec.modelSpec[0].hf_token; of one in Result.Values
	// it begins with "converted ".
	Path string
	// Severity of it.
	Severity Severity
	// Text is one sentence or two, without the value where that is secret.
	Text string
}

// Result is what a conversion gives.
type Result struct {
	// Values is YAML for charts/mobula, without what is the default.
	Values []byte
	// Notes are what a reader has to know: first of values that have a fate of their own, then section by section, Secrets last.
	Notes []Note
}

// Dropped tells whether any value has no counterpart.
func (r Result) Dropped() bool {
	return slices.ContainsFunc(r.Notes, func(n Note) bool { return n.Severity == Dropped })
}

// ProductionStack converts values of the vLLM Production Stack's chart (vllm-stack 0.1.12). Several files are merged as Helm
// does: mappings key by key, a list or text of a later file in place of an earlier one's, null takes a value away. Secrets are not
// copied: the values refer to Kubernetes Secrets, and a note says how to make them. The error is, or joins, *mobula.FileError for
// files that are no YAML or have values of wrong types; it wraps ErrTooLarge for a file that is.
func ProductionStack(files ...File) (Result, error) {
	in, err := read(files)
	if err != nil {
		return Result{}, err
	}
	s := &stack{input: in, index: newSpec(stackRows()), out: &object{}}
	if s.walk(s.index, "", in.values, false); len(in.problems) == 0 { // else nothing is of the type it should be
		s.convert()
	}
	if err := in.failure(); err != nil {
		return Result{}, err
	}
	s.verify()
	values, err := write(header, s.out)
	if err != nil {
		return Result{}, err
	}
	return Result{Values: values, Notes: s.notes}, nil
}

const header = "Values of charts/mobula, made by mobula convert from those of a vLLM Production Stack."

// stack is one conversion.
type stack struct {
	*input
	index *spec
	out   *object
	notes []Note
	// models are those that are converted, in order.
	models []*model
	// secrets to be made by hand, in order.
	secrets []*secret
	// objects for extraObjects.
	objects []any
}

// note tells of the value at a path.
func (s *stack) note(path string, severity Severity, format string, args ...any) {
	n := Note{Path: path, Severity: severity, Text: fmt.Sprintf(format, args...)}
	if !slices.Contains(s.notes, n) {
		s.notes = append(s.notes, n)
	}
}

// convert fills out. The order is that of the values, for people to read.
func (s *stack) convert() {
	engines, router := s.root().sub("servingEngineSpec"), s.root().sub("routerSpec")
	s.engines(engines)
	s.loras(s.root().list("loraAdapters"))
	s.sharedStorage(s.root().sub("sharedPvcStorage"))
	s.autoscaling()
	s.writeModels()
	s.routing(router)
	s.router(router)
	s.keys(engines, router)
	s.cacheServer(s.root().sub("cacheserverSpec"))
	s.monitoring(engines, router)
	s.beside()
	s.tellSecrets()
	s.out.set("extraObjects", s.objects)
	s.out.order("models", "platform", "fleet", "image", "router", "control", "serviceMonitor", "podMonitor", "dashboards", "cacheServer", "keda", "extraObjects", "kube-prometheus-stack", "prometheus-adapter")
}

// verify notes what Mobula would refuse of the values, as values of theirs could be that no cluster takes either.
func (s *stack) verify() {
	fleet := &object{}
	fleet.set("apiVersion", mobula.APIVersion)
	fleet.set("kind", "Fleet")
	platform, _ := s.out.get("platform").(*object)
	if platform == nil || len(platform.pairs) == 0 {
		platform = &object{}
		platform.keep("kubernetes", &object{})
	}
	fleet.set("platform", platform)
	fleet.set("models", s.out.get("models"))
	if rest, ok := s.out.get("fleet").(*object); ok {
		fleet.pairs = append(fleet.pairs, rest.pairs...)
	}
	text, err := write("", fleet)
	if err == nil {
		_, err = mobula.Load(text, "values")
	}
	if wrong, ok := errors.AsType[*mobula.FileError](err); ok {
		for _, p := range wrong.Problems {
			s.note("converted "+p.Field, Action, "put it right: %s", p.Message)
		}
	} else if err != nil {
		s.note("converted models", Action, "put it right: %v", err)
	}
}
