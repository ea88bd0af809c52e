package kubetest

import (
	"encoding/base64"
	"fmt"
	"hash/fnv"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/kubernetes/scheme"
)

// decodes checks that an object of a built-in kind has the types of its fields.
func decodes(t *table, o tree) error {
	typed, err := scheme.Scheme.New(t.kind())
	if err != nil {
		return nil //nolint:nilerr // a custom resource, of which no types are known
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o, typed); err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", t.Kind, t.Version, t.Kind, err))
	}
	return nil
}

// set gives a field a value where it has none.
func set(o tree, name string, value any) {
	if o != nil && o[name] == nil {
		o[name] = value
	}
}

func child(o tree, name string) tree {
	set(o, name, tree{})
	return sub(o, name)
}

// defaults fills in what the API server does, of what others read.
func defaults(t *table, o tree) {
	if t.is("", "secrets") {
		secretDefaults(o)
	}
	spec := sub(o, "spec")
	if spec == nil {
		return
	}
	switch {
	case t.is("", "pods"):
		podDefaults(spec)
		set(spec, "serviceAccountName", "default")
		set(spec, "enableServiceLinks", true)
		set(o, "status", tree{"phase": "Pending", "qosClass": "Burstable"})
	case t.is("", "services"):
		serviceDefaults(o, spec)
	case t.is("", "persistentvolumeclaims"):
		set(spec, "volumeMode", "Filesystem")
		set(o, "status", tree{"phase": "Bound", "accessModes": copied(spec["accessModes"]), "capacity": copied(at(spec, "resources", "requests"))})
	case t.Group == "apps" && sub(spec, "template") != nil:
		podDefaults(sub(spec, "template", "spec"))
		workloadDefaults(t.Kind, spec)
	}
}

func workloadDefaults(kind string, spec tree) {
	switch kind {
	case "Deployment":
		set(spec, "replicas", int64(1))
		set(spec, "revisionHistoryLimit", int64(10))
		set(spec, "progressDeadlineSeconds", int64(600))
		strategy := child(spec, "strategy")
		set(strategy, "type", "RollingUpdate")
		if text(strategy, "type") == "RollingUpdate" {
			rolling := child(strategy, "rollingUpdate")
			set(rolling, "maxSurge", "25%")
			set(rolling, "maxUnavailable", "25%")
		}
	case "ReplicaSet":
		set(spec, "replicas", int64(1))
	case "StatefulSet":
		set(spec, "replicas", int64(1))
		set(spec, "revisionHistoryLimit", int64(10))
		set(spec, "podManagementPolicy", "OrderedReady")
		set(child(spec, "updateStrategy"), "type", "RollingUpdate")
		set(spec, "persistentVolumeClaimRetentionPolicy", tree{"whenDeleted": "Retain", "whenScaled": "Retain"})
	}
}

// secretDefaults encodes what was given as text.
func secretDefaults(o tree) {
	set(o, "type", "Opaque")
	for name, v := range texts(sub(o, "stringData")) {
		child(o, "data")[name] = base64.StdEncoding.EncodeToString([]byte(v))
	}
	delete(o, "stringData")
}

func podDefaults(spec tree) {
	set(spec, "restartPolicy", "Always")
	set(spec, "terminationGracePeriodSeconds", int64(30))
	set(spec, "dnsPolicy", "ClusterFirst")
	set(spec, "schedulerName", "default-scheduler")
	set(spec, "securityContext", tree{})
	for _, c := range containers(spec) {
		image := text(c, "image")
		policy := "IfNotPresent"
		if _, tag, ok := strings.Cut(image[strings.LastIndexByte(image, '/')+1:], ":"); !ok || tag == "latest" {
			policy = "Always"
		}
		set(c, "imagePullPolicy", policy)
		set(c, "terminationMessagePath", "/dev/termination-log")
		set(c, "terminationMessagePolicy", "File")
		set(c, "resources", tree{})
		resources := sub(c, "resources")
		for name, q := range sub(resources, "limits") {
			set(child(resources, "requests"), name, q)
		}
		for _, p := range trees(list(c, "ports")) {
			set(p, "protocol", "TCP")
		}
		for _, probe := range []string{"startupProbe", "readinessProbe", "livenessProbe"} {
			if p := sub(c, probe); p != nil {
				set(p, "timeoutSeconds", int64(1))
				set(p, "periodSeconds", int64(10))
				set(p, "successThreshold", int64(1))
				set(p, "failureThreshold", int64(3))
				set(sub(p, "httpGet"), "scheme", "HTTP")
			}
		}
	}
}

// containers gives all containers of a pod's spec.
func containers(spec tree) []tree {
	return append(trees(list(spec, "containers")), trees(list(spec, "initContainers"))...)
}

func serviceDefaults(o, spec tree) {
	set(spec, "type", "ClusterIP")
	if text(spec, "type") == "ExternalName" {
		return
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(text(o, "metadata", "namespace") + "/" + text(o, "metadata", "name"))) // never fails
	n := h.Sum32()
	set(spec, "clusterIP", fmt.Sprintf("10.96.%d.%d", n>>8&0xff, n&0xff))
	set(spec, "clusterIPs", []any{spec["clusterIP"]})
	set(spec, "sessionAffinity", "None")
	set(spec, "internalTrafficPolicy", "Cluster")
	set(spec, "ipFamilies", []any{"IPv4"})
	set(spec, "ipFamilyPolicy", "SingleStack")
	for _, p := range trees(list(spec, "ports")) {
		set(p, "protocol", "TCP")
		if target := p["targetPort"]; target == nil || target == int64(0) || target == "" {
			p["targetPort"] = p["port"]
		}
	}
	set(o, "status", tree{"loadBalancer": tree{}})
}

// valid checks an object, was being what it was or nil, for the mistakes that are easily made.
func valid(t *table, was, is tree) error {
	meta := &unstructured.Unstructured{Object: is}
	name := validation.NameIsDNSSubdomain
	switch {
	case t.is("", "services"):
		name = validation.NameIsDNS1035Label
	case t.is("", "namespaces"):
		name = validation.NameIsDNSLabel
	case t.Group == "rbac.authorization.k8s.io":
		name = func(string, bool) []string { return nil }
	}
	errs := validation.ValidateObjectMetaAccessor(meta, t.Namespaced, name, field.NewPath("metadata"))
	spec := field.NewPath("spec")
	switch {
	case t.is("", "pods"):
		errs = append(errs, validPod(sub(is, "spec"), spec)...)
		if was != nil && !reflect.DeepEqual(lasting(sub(was, "spec")), lasting(sub(is, "spec"))) {
			errs = append(errs, field.Forbidden(spec, "pod updates may not change fields other than `spec.containers[*].image`,"+
				"`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds`"))
		}
	case t.is("apps", "deployments"), t.is("apps", "replicasets"), t.is("apps", "statefulsets"):
		errs = append(errs, validWorkload(t, was, is, spec)...)
	case t.is("", "services") && was != nil:
		if have, had := text(is, "spec", "clusterIP"), text(was, "spec", "clusterIP"); have != had {
			errs = append(errs, field.Invalid(spec.Child("clusterIPs").Index(0), have, "may not change once set"))
		}
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(t.kind().GroupKind(), text(is, "metadata", "name"), errs)
	}
	return nil
}

// lasting gives what may not be changed of a pod's spec.
func lasting(spec tree) tree {
	out := copyTree(spec)
	for _, name := range []string{"activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"} {
		delete(out, name)
	}
	for _, c := range containers(out) {
		delete(c, "image")
	}
	return out
}

func validWorkload(t *table, was, is tree, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	selector, err := selectorOf(sub(is, "spec", "selector"))
	template := path.Child("template")
	switch {
	case err != nil || selector.Empty():
		errs = append(errs, field.Invalid(path.Child("selector"), at(is, "spec", "selector"), "empty selector is invalid for "+strings.ToLower(t.Kind)))
	case !selector.Matches(labels.Set(texts(sub(is, "spec", "template", "metadata", "labels")))):
		errs = append(errs, field.Invalid(template.Child("metadata", "labels"), at(is, "spec", "template", "metadata", "labels"), "`selector` does not match template `labels`"))
	}
	errs = append(errs, validPod(sub(is, "spec", "template", "spec"), template.Child("spec"))...)
	if policy := text(is, "spec", "template", "spec", "restartPolicy"); policy != string(corev1.RestartPolicyAlways) {
		errs = append(errs, field.NotSupported(template.Child("spec", "restartPolicy"), policy, []string{"Always"}))
	}
	if number(is, 0, "spec", "replicas") < 0 {
		errs = append(errs, field.Invalid(path.Child("replicas"), at(is, "spec", "replicas"), "must be greater than or equal to 0"))
	}
	if was == nil {
		return errs
	}
	if !reflect.DeepEqual(at(was, "spec", "selector"), at(is, "spec", "selector")) {
		errs = append(errs, field.Invalid(path.Child("selector"), at(is, "spec", "selector"), "field is immutable"))
	}
	if t.Kind == "StatefulSet" {
		for name, v := range sub(is, "spec") {
			mutable := []string{"replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit", "persistentVolumeClaimRetentionPolicy", "minReadySeconds"}
			if !slices.Contains(mutable, name) && !reflect.DeepEqual(v, at(was, "spec", name)) {
				errs = append(errs, field.Forbidden(path, "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"))
				break
			}
		}
	}
	return errs
}

func validPod(spec tree, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(list(spec, "containers")) == 0 {
		errs = append(errs, field.Required(path.Child("containers"), ""))
	}
	volumes := map[string]bool{}
	for i, v := range trees(list(spec, "volumes")) {
		name := text(v, "name")
		if volumes[name] {
			errs = append(errs, field.Duplicate(path.Child("volumes").Index(i).Child("name"), name))
		}
		volumes[name] = true
	}
	names := map[string]bool{}
	for _, kind := range []string{"containers", "initContainers"} {
		for i, c := range trees(list(spec, kind)) {
			at := path.Child(kind).Index(i)
			errs = append(errs, validContainer(c, volumes, at)...)
			if name := text(c, "name"); names[name] {
				errs = append(errs, field.Duplicate(at.Child("name"), name))
			}
			names[text(c, "name")] = true
		}
	}
	return errs
}

func validContainer(c tree, volumes map[string]bool, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	name := text(c, "name")
	for _, problem := range utilvalidation.IsDNS1123Label(name) {
		errs = append(errs, field.Invalid(path.Child("name"), name, problem))
	}
	if text(c, "image") == "" {
		errs = append(errs, field.Required(path.Child("image"), ""))
	}
	for i, m := range trees(list(c, "volumeMounts")) {
		if !volumes[text(m, "name")] {
			errs = append(errs, field.NotFound(path.Child("volumeMounts").Index(i).Child("name"), text(m, "name")))
		}
		if text(m, "mountPath") == "" {
			errs = append(errs, field.Required(path.Child("volumeMounts").Index(i).Child("mountPath"), ""))
		}
	}
	for i, p := range trees(list(c, "ports")) {
		for _, problem := range utilvalidation.IsValidPortNum(int(number(p, 0, "containerPort"))) {
			errs = append(errs, field.Invalid(path.Child("ports").Index(i).Child("containerPort"), p["containerPort"], problem))
		}
	}
	for resource, q := range sub(c, "resources", "requests") {
		extended := strings.Contains(resource, "/")
		if limit := at(c, "resources", "limits", resource); extended && limit == nil {
			errs = append(errs, field.Required(path.Child("resources", "limits"), "Limit must be set for non overcommitable resources"))
		} else if extended && fmt.Sprint(limit) != fmt.Sprint(q) {
			errs = append(errs, field.Invalid(path.Child("resources", "requests"), q, fmt.Sprintf("must be equal to %s limit of %v", resource, limit)))
		}
	}
	if l := sub(c, "livenessProbe"); l != nil && number(l, 1, "successThreshold") != 1 {
		errs = append(errs, field.Invalid(path.Child("livenessProbe", "successThreshold"), l["successThreshold"], "must be 1"))
	}
	return errs
}

// selectorOf reads a label selector of an object.
func selectorOf(s tree) (labels.Selector, error) {
	if s == nil {
		return labels.Nothing(), nil
	}
	var typed metav1.LabelSelector
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(s, &typed); err != nil {
		return nil, err
	}
	return metav1.LabelSelectorAsSelector(&typed)
}
