package convert

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/mobula-serve/mobula"
)

// asks converts what an engine asks for.
func (s *stack) asks(m *model) {
	m.resources.keep("gpus", 0)
	if raw := m.mapping("resources"); given(raw) {
		s.rawResources(m, raw)
	} else {
		for _, a := range [][2]string{{"requestCPU", "cpu"}, {"limitCPU", "cpuLimit"}, {"requestMemory", "memory"}, {"limitMemory", "memoryLimit"}} {
			m.pods.set(a[1], m.text(a[0]))
		}
		m.resources.keep("gpus", wholeOf(m.raw("requestGPU")))
		m.pods.set("gpuResource", m.text("requestGPUType"))
		for _, side := range [][2]string{{"request", "requests"}, {"limit", "limits"}} {
			for _, what := range [][2]string{{"GPUMem", "gpumem"}, {"GPUMemPercentage", "gpumem-percentage"}, {"GPUCores", "gpucores"}} {
				if v := m.text(side[0] + what[0]); v != "" {
					m.container.child("resources", side[1]).set("nvidia.com/"+what[1], v)
				}
			}
		}
	}
	if m.pods.get("gpuResource") == "nvidia.com/gpu" {
		m.pods.drop("gpuResource") // the default
	}
	if m.resources.get("gpus") == 0 && m.pd {
		m.resources.drop("gpus") // engines that share the devices of a host by hostIPC: here each has its own
	}
	if size := m.text("shmSize"); size != "" {
		m.pods.set("sharedMemory", sizeOf(size))
	}
}

// rawResources takes a block as a container has it: ours has names for some of it.
func (s *stack) rawResources(m *model, raw map[string]any) {
	gpu := ""
	for _, side := range []string{"requests", "limits"} {
		all, ok := raw[side].(map[string]any)
		if !ok && raw[side] != nil {
			s.bad(m.at("resources."+side), "want a mapping, got %s", shown(raw[side]))
		}
		suffix := map[string]string{"requests": "", "limits": "Limit"}[side]
		for _, name := range slices.Sorted(maps.Keys(all)) {
			value := scalarText(all[name])
			switch {
			case name == "cpu" || name == "memory":
				m.pods.set(name+suffix, value)
			case isGPU(name) && (gpu == "" || gpu == name):
				gpu = name
				m.resources.keep("gpus", wholeOf(all[name]))
				m.pods.set("gpuResource", name)
			default:
				m.container.child("resources", side).set(name, value)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(raw)) {
		if name != "requests" && name != "limits" {
			m.container.child("resources").set(name, raw[name])
		}
	}
}

// isGPU tells resources that count GPUs or parts of one from those of their memory and cores.
func isGPU(name string) bool {
	_, kind, _ := strings.Cut(name, "/")
	return kind == "gpu" || strings.HasPrefix(kind, "gpu.") || strings.HasPrefix(kind, "mig-")
}

// wholeOf is the number of GPUs that their templates make of a value: what is no whole number is 0.
func wholeOf(v any) int {
	f, err := strconv.ParseFloat(scalarText(v), 64)
	if err != nil || !(f >= 1 && f <= 1<<20) {
		return 0
	}
	return int(f)
}

// sizeOf writes a quantity of Kubernetes as a size of Mobula's; what is none stays as it is, to be refused by its name.
func sizeOf(quantity string) string {
	units := []struct {
		suffix string
		bytes  float64
	}{
		{"Ki", 1 << 10},
		{"Mi", 1 << 20},
		{"Gi", 1 << 30},
		{"Ti", 1 << 40},
		{"Pi", 1 << 50},
		{"k", 1e3},
		{"M", 1e6},
		{"G", 1e9},
		{"T", 1e12},
		{"P", 1e15},
		{"", 1},
	}
	for _, u := range units {
		digits, ok := strings.CutSuffix(quantity, u.suffix)
		if n, err := strconv.ParseFloat(digits, 64); ok && err == nil && n >= 0 && n*u.bytes < math.MaxInt64 {
			return mobula.Size(int64(n * u.bytes)).String()
		}
	}
	return quantity
}

// overRay converts raySpec: replicaCount counts the workers of one engine there.
func (s *stack) overRay(m *model) {
	ray := m.sub("raySpec")
	if !m.ray {
		return
	}
	head, workers := ray.sub("headNode"), m.whole("replicaCount", 1)
	ofHead := wholeOf(head.raw("requestGPU"))
	if raw := head.mapping("resources"); given(raw) {
		other := &model{section: m.section, resources: &object{}, pods: &object{}, container: &object{}}
		s.rawResources(other, raw)
		ofHead, _ = other.resources.get("gpus").(int)
	}
	each, _ := m.resources.get("gpus").(int)
	hosts := workers + 1
	if ofHead == 0 && each > 0 {
		hosts = workers
		m.resources.keep("headless", true)
	} else if each == 0 {
		each = ofHead
	}
	hosts = max(1, hosts)
	if ofHead != 0 && ofHead != each {
		s.note(head.at("requestGPU"), Changed, "hosts of an engine have equal shares of its GPUs: the head gets %d, not %d", each, ofHead)
	}
	for _, pair := range [][2]string{{"requestCPU", "requestCPU"}, {"requestMemory", "requestMemory"}, {"limitCPU", "limitCPU"}, {"limitMemory", "limitMemory"}, {"requestGPUType", "requestGPUType"}} {
		if v := head.text(pair[0]); v != "" && v != m.text(pair[1]) && m.resources.get("headless") == nil {
			s.note(head.at(pair[0]), Changed, "the head is made as the workers are")
		}
	}
	m.low, m.high = 1, 1
	m.resources.keep("gpus", each*hosts)
	if hosts > 1 {
		m.resources.keep("hosts", hosts)
	}
	s.note(m.at("replicaCount"), Changed, "it counts the workers of one engine there: here that is resources.hosts %d, and replicas are whole engines", hosts)
	s.note(ray.path, Action, "platform.kuberay.rayVersion has to be that of the image's Ray: it is 2.60.0 unless you set it")
}

// storage converts what keeps weights.
func (s *stack) storage(m *model) {
	data := &object{}
	modes := m.texts("pvcAccessMode")
	storage := m.raw("pvcStorage")
	_, isEmptyDir := storage.(map[string]any)
	switch {
	case !given(storage) && !m.has("pvcStorage"):
	case isEmptyDir:
		if limit := emptyDirOf(storage)["sizeLimit"]; limit != nil {
			s.note(m.at("pvcStorage.emptyDir.sizeLimit"), Dropped, "an engine's emptyDir has no bound")
		}
		if emptyDirOf(storage) == nil {
			s.bad(m.at("pvcStorage"), "want a size such as 50Gi, or a mapping with emptyDir")
		}
	case m.text("pvcExistingClaimName") != "":
		data.set("claim", m.text("pvcExistingClaimName"))
		m.env.keep("HF_HOME", "/data")
	case given(m.raw("pvcMatchLabels")):
		name := slug(m.theirs) + "-data"
		data.set("claim", name)
		s.note(m.at("pvcMatchLabels"), Action, "make the PersistentVolumeClaim %s by hand, with that selector: the claims that Mobula makes have none", name)
	default:
		data.set("size", sizeOf(scalarText(storage)))
		data.set("storageClass", m.text("storageClass"))
		switch {
		case slices.Contains(modes, "ReadWriteMany"):
			data.set("accessMode", "ReadWriteMany")
		case len(modes) > 0:
			data.set("accessMode", modes[0])
		}
		if len(modes) > 1 {
			s.note(m.at("pvcAccessMode"), Changed, "one of them is enough: %v", data.get("accessMode"))
		}
		if m.has("storageClass") && m.text("storageClass") == "" {
			s.note(m.at("storageClass"), Changed, "empty is the cluster's default class here, not volumes without a class")
		}
		s.note(m.at("pvcStorage"), Changed, "the claim is a new one, which fills from the hub; to go on with theirs: kubernetes.data.claim (docs/migrating-from-production-stack.md)")
	}
	m.pods.set("data", data)
	for i, v := range m.list("extraVolumes") {
		if name := volumeName(v); slices.Contains(namesTaken(), name) {
			s.note(m.at("extraVolumes")+"["+strconv.Itoa(i)+"].name", Changed, "%s is a volume of Mobula's own: it is extra-%s here", name, name)
		}
	}
	if volumes := renamed(m.list("extraVolumes")); len(volumes) > 0 {
		m.pod.child("spec").keep("volumes", append(listOf(m.pod.child("spec").get("volumes")), volumes...))
	}
	if mounts := renamed(m.list("extraVolumeMounts")); len(mounts) > 0 {
		m.container.keep("volumeMounts", append(listOf(m.container.get("volumeMounts")), mounts...))
	}
}

func emptyDirOf(storage any) map[string]any {
	m, _ := storage.(map[string]any)
	e, ok := m["emptyDir"].(map[string]any)
	if _, is := m["emptyDir"]; is && !ok {
		return map[string]any{}
	}
	return e
}

// namesTaken are names of volumes that engines' pods have from Mobula.
func namesTaken() []string { return []string{"data", "shm", "tmp"} }

func volumeName(v any) string {
	m, _ := v.(map[string]any)
	return scalarText(m["name"])
}

// renamed keeps volumes, or mounts, apart from Mobula's own.
func renamed(all []any) []any {
	out := make([]any, 0, len(all))
	for _, v := range all {
		if name := volumeName(v); slices.Contains(namesTaken(), name) {
			m := maps.Clone(v.(map[string]any)) //nolint:errcheck,forcetypeassert // it has a name
			m["name"] = "extra-" + name
			v = m
		}
		out = append(out, v)
	}
	return out
}

func listOf(v any) []any {
	l, _ := v.([]any)
	return l
}

// sharedStorage converts sharedPvcStorage: a volume in every engine.
func (s *stack) sharedStorage(shared section) {
	if !shared.enabled() || len(s.models) == 0 {
		return
	}
	const name, path = "shared-storage", "/data/shared-pvc-storage"
	volume := func() *object {
		v := &object{}
		v.set("name", name)
		switch {
		case shared.text("hostPath") != "":
			v.child("hostPath").set("path", shared.text("hostPath"))
			v.child("hostPath").set("type", "DirectoryOrCreate")
		case shared.sub("nfs").text("server") != "":
			shared.sub("nfs").copyTo(v.child("nfs"), "server", "server", "path", "path")
		default:
			v.child("persistentVolumeClaim").set("claimName", name)
		}
		return v
	}
	for _, m := range s.models {
		m.volume(volume(), path)
		if m.env.get("HF_HOME") == nil {
			m.env.keep("HF_HOME", path)
		}
	}
	if volume().get("persistentVolumeClaim") == nil {
		return
	}
	claim := &object{}
	claim.set("apiVersion", "v1")
	claim.set("kind", "PersistentVolumeClaim")
	claim.child("metadata").set("name", name)
	claim.child("metadata", "annotations").set("helm.sh/resource-policy", "keep")
	modes := shared.texts("accessModes")
	if len(modes) == 0 {
		modes = []string{"ReadWriteMany"}
	}
	spec := claim.child("spec")
	spec.set("accessModes", modes)
	spec.set("storageClassName", shared.text("storageClass"))
	size := shared.text("size")
	if size == "" {
		size = "100Gi"
	}
	spec.child("resources", "requests").set("storage", size)
	s.objects = append(s.objects, claim)
	s.note(shared.path, Changed, "the claim %s is a new one, which fills from the hub", name)
}
