package main

import "github.com/mobula-serve/mobula"

// The structs of this file are the custom resources' fields that a fleet file doesn't have, and their status. Those that
// a fleet file has are taken from there; one of the same name takes its place.

// FleetSpec is a fleet file without its models, which are Model objects. All fields are optional.
type FleetSpec struct {
	// Where the engines are. Exactly one platform is set. Default: kubernetes with nothing set.
	Platform mobula.Platform `yaml:"platform"`
}

// ModelSpec is one model of a fleet, as an entry of models in a fleet file. All fields are optional.
type ModelSpec struct {
	// The id that engines list at /v1/models. It can't be changed. At most 253 characters. Default: the object's name.
	Name string `yaml:"name"`
	// Name of the Fleet object that the model belongs to, in the same namespace. Default: default.
	Fleet string `yaml:"fleet"`
	// How many engines serve it: what kubectl scale, a HorizontalPodAutoscaler and KEDA set. With range, none is given. 0 to 1000. Default: none are placed.
	Replicas int `yaml:"replicas"`
	// How many engines serve it, following the load.
	Range ReplicaRange `yaml:"range"`
}

// ReplicaRange is the least and the most number of replicas.
type ReplicaRange struct {
	// The least; with 0 all are taken away when nobody asks. 0 to 1000. Required.
	Min int `yaml:"min"`
	// The most. 0 to 1000. Required.
	Max int `yaml:"max"`
}

// LoRASpec is one LoRA of a model, as an entry of loras in a fleet file.
type LoRASpec struct {
	// The id that clients ask for. No model's name. It can't be changed. At most 253 characters. Default: the object's name.
	Name string `yaml:"name"`
	// Name of the Model object, in the same namespace. Required.
	Model string `yaml:"model"`
}

// FleetStatus is what the control plane has made of a Fleet.
type FleetStatus struct {
	// The generation of the object that this is about.
	ObservedGeneration int `yaml:"observedGeneration"`
	// Models of the fleet.
	Models int `yaml:"models"`
	// Routers that follow the control plane.
	Routers int `yaml:"routers"`
	// Models with all the replicas that they should have, of all, as 2/3.
	Ready string `yaml:"ready"`
	// In a word: Ready, Progressing, Stale (the cluster does not answer), Invalid or Refused.
	Phase string `yaml:"phase"`
	// Accepted and Ready. Their messages say what is wrong and what to do.
	Conditions []Condition `yaml:"conditions"`
}

// ModelStatus is what the control plane has made of a Model.
type ModelStatus struct {
	// The generation of the object that this is about.
	ObservedGeneration int `yaml:"observedGeneration"`
	// Replicas that there are, of all revisions.
	Replicas int `yaml:"replicas"`
	// Replicas that serve.
	ReadyReplicas int `yaml:"readyReplicas"`
	// Replicas that there should be now.
	DesiredReplicas int `yaml:"desiredReplicas"`
	// Replicas that serve, of those that there should be, as 2/3.
	Ready string `yaml:"ready"`
	// Label selector of the pods that serve, for the scale subresource.
	Selector string `yaml:"selector"`
	// Revision that the replicas have or are being brought to.
	Revision string `yaml:"revision"`
	// In a word: Ready, Progressing, Pending, Invalid, Refused or others that mobula status has.
	Phase string `yaml:"phase"`
	// What is wrong and what to do, or what is being done.
	Message string `yaml:"message"`
	// Accepted, Progressing and Ready.
	Conditions []Condition `yaml:"conditions"`
	// LoRAs of the model, those of LoRA objects too.
	LoRAs []LoRAState `yaml:"loras"`
}

// LoRAState is where a LoRA of a model is loaded.
type LoRAState struct {
	// Its id. Required.
	Name string `yaml:"name"`
	// Engines that have it.
	Loaded int `yaml:"loaded"`
	// Engines that should have it.
	Wanted int `yaml:"wanted"`
	// Why one has not, empty when all have it.
	Error string `yaml:"error"`
}

// LoRAStatus is what the control plane has made of a LoRA.
type LoRAStatus struct {
	// The generation of the object that this is about.
	ObservedGeneration int `yaml:"observedGeneration"`
	// The id of the model.
	Model string `yaml:"model"`
	// Engines that have it.
	Loaded int `yaml:"loaded"`
	// Engines that should have it.
	Wanted int `yaml:"wanted"`
	// Engines that have it, of those that should, as 1/2.
	Ready string `yaml:"ready"`
	// In a word: Loaded, NotLoaded, Invalid or Refused.
	Phase string `yaml:"phase"`
	// Accepted and Ready. Their messages say what is wrong and what to do.
	Conditions []Condition `yaml:"conditions"`
}

// Condition is one answer about an object (meta/v1).
type Condition struct {
	// What it is about: Accepted, Progressing or Ready. Required.
	Type string `yaml:"type"`
	// One of True, False or Unknown. Required.
	Status string `yaml:"status"`
	// The generation of the object that this is about.
	ObservedGeneration int `yaml:"observedGeneration"`
	// When the status was another one last. Required.
	LastTransitionTime string `yaml:"lastTransitionTime"`
	// Why, in one word for programs. Required.
	Reason string `yaml:"reason"`
	// Why, in a sentence for people.
	Message string `yaml:"message"`
}
