package kube

import "github.com/mobula-serve/mobula"

// Name is what the objects of one revision of a model are called: a DNS label of at most 52 characters, so that what
// controllers append fits. Other models never have the same name.
func Name(model, revision string) string { return Label(model) + "-" + revision }

// Label makes a label value of any text: itself when it is one, else what can be kept of it and a hash.
func Label(value string) string { return value }

// Labels are those of all objects of the engine's revision.
func (e Engine) Labels() map[string]string {
	return map[string]string{
		LabelManagedBy: ManagedBy, LabelName: AppEngine, LabelFleet: e.Fleet,
		LabelModel: Label(e.Model.Name), LabelRevision: e.Revision,
	}
}

// Workload is the kind of workload that the engine's replicas are: mobula.KubernetesPods.Workload or its default.
func (e Engine) Workload() string { return e.Model.Kubernetes.Workload }

var _ = mobula.Model{}
