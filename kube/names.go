package kube

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/mobula-serve/mobula/engine"
)

const (
	maxLabel   = 41 // so that "-", a revision of ten and what controllers append fit
	hashLength = 8
)

// Kinds of workload: values of mobula.KubernetesPods.Workload.
const (
	KindDeployment  = "Deployment"
	KindStatefulSet = "StatefulSet"
	KindRayCluster  = "RayCluster"
)

// Name is what the objects of one revision of a model are called: a DNS label of at most 52 characters, so that what
// controllers append fits. Other models never have the same name.
func Name(model, revision string) string { return Label(model) + "-" + revision }

// Label makes a DNS label of at most 41 characters of any text: itself when it is one, else what can be kept of its part
// after the last "/", and a hash. It begins with a letter, as names of Services must.
func Label(value string) string {
	if len(value) <= maxLabel && isLabel(value) && !looksHashed(value) {
		return value
	}
	tail := "-" + digest(value)
	kept := slug(value[strings.LastIndexByte(value, '/')+1:])
	if kept == "" || kept[0] < 'a' {
		kept = strings.TrimSuffix("m-"+kept, "-")
	}
	return strings.TrimRight(kept[:min(len(kept), maxLabel-len(tail))], "-") + tail
}

// isLabel tells whether text is a DNS label as names of Services are (RFC 1035): a letter first.
func isLabel(text string) bool { return len(validation.IsDNS1035Label(text)) == 0 }

// looksHashed tells of a text that ends as those do which Label makes: it is hashed too, else it could be one of them.
func looksHashed(text string) bool {
	at := len(text) - hashLength - 1
	return at >= 0 && text[at] == '-' && strings.Trim(text[at+1:], "0123456789abcdef") == ""
}

// slug keeps the letters, in lower case, and digits of text, with single dashes for all between them.
func slug(text string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(text) {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && b.String()[b.Len()-1] != '-':
			b.WriteByte('-')
		}
	}
	return strings.TrimRight(b.String(), "-")
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])[:hashLength]
}

// Hash names a value by its JSON, in ten hex digits: equal values have the same one. It is for AnnotationSpec, and
// panics on what JSON can't hold, such as a channel.
func Hash(value any) string {
	text, err := json.Marshal(value) // maps come sorted by key
	if err != nil {
		panic(err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])[:10]
}

// Labels are those of all objects of the engine's revision.
func (e Engine) Labels() map[string]string {
	return map[string]string{
		LabelManagedBy: ManagedBy, LabelName: AppEngine, LabelFleet: e.Fleet,
		LabelModel: Label(e.Model.Name), LabelRevision: e.Revision,
	}
}

// Workload is the kind of workload that the engine's replicas are: mobula.KubernetesPods.Workload or its default.
func (e Engine) Workload() string {
	return cmp.Or(e.Model.Kubernetes.Workload, e.usual())
}

func (e Engine) usual() string {
	several := e.hosts() > 1
	switch {
	case e.KubeRay != nil && !e.simulated() && (several || engine.Spreads(e.Model.Engine.Args)):
		return KindRayCluster
	case several:
		return KindStatefulSet
	default:
		return KindDeployment
	}
}

func (e Engine) hosts() int { return max(1, e.Model.Resources.Hosts) }

func (e Engine) simulated() bool { return e.Model.Engine.Kind == "sim" }
