package mobula

import (
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
)

// Bounds of what one pod asks for.
const (
	leastCPU    = 0.001
	leastMemory = 1 << 20 // less is a slip: 500m is half a byte
	mostMemory  = 1 << 50
)

func checkKubernetes(at string, k *Kubernetes, r *report) {
	if k.Namespace != "" && !isLabel(k.Namespace) {
		r.bad(at+".namespace", "want a namespace: at most 63 lower-case letters, digits and dashes, a dash neither first nor last, got %s", quote(k.Namespace))
	}
	if strings.TrimSpace(k.Kubeconfig) != k.Kubeconfig {
		r.bad(at+".kubeconfig", "want the path of a file without spaces around it, got %s", quote(k.Kubeconfig))
	}
	checkPods(at+".pods", &k.Pods, r)
	for i := range k.Discover {
		checkDiscover(at+".discover["+strconv.Itoa(i)+"]", &k.Discover[i], r)
	}
}

func checkDiscover(at string, d *KubernetesDiscover, r *report) {
	if problem := checkSelector(d.Selector); problem != "" {
		r.bad(at+".selector", "want a label selector such as app=vllm,tier in (prod), got %s: %s", quote(d.Selector), problem)
	}
	taken := map[string]bool{}
	for i, n := range d.Namespaces {
		field := at + ".namespaces[" + strconv.Itoa(i) + "]"
		switch {
		case n == "*" && len(d.Namespaces) > 1:
			r.bad(field, "want * alone: it is all namespaces")
		case n != "*" && !isLabel(n):
			r.bad(field, "want a namespace, or * for all, got %s", quote(n))
		case taken[n]:
			r.bad(field, "%s is given twice", quote(n))
		}
		taken[n] = true
	}
	oneOf(r, at+".by", d.By, "pods", "services")
	if d.Port != "" && !isPort(d.Port, 1) && !isPortName(d.Port) {
		r.bad(at+".port", "want a port from 1 to 65535 or the name of one, got %s", quote(d.Port))
	}
	checkNames(at+".models", d.Models, map[string]string{}, r)
	checkKey(at, "apiKey", d.APIKeyFile, d.APIKeyEnv, r)
}

func checkKubeRay(k *KubeRay, r *report) {
	const at = "platform.kuberay"
	checkKubernetes(at+".kubernetes", &k.Kubernetes, r)
	if parts := strings.Split(k.RayVersion, "."); len(parts) != 3 || slices.ContainsFunc(parts, func(p string) bool { return !only(p, digits) }) {
		r.bad(at+".rayVersion", "want a version of Ray such as 2.60.0, got %s", quote(k.RayVersion))
	}
	oneOf(r, at+".auth", k.Auth, "token", "disabled")
	if k.RedisAddress != "" {
		host, port, err := net.SplitHostPort(k.RedisAddress)
		if err != nil || !isHost(host) || !isPort(port, 1) {
			r.bad(at+".redisAddress", "want host:port such as redis:6379, got %s", quote(k.RedisAddress))
		}
	}
	checkSecret(at+".redisPassword", k.RedisPassword, r)
	if k.RedisPassword != (SecretKey{}) && k.RedisAddress == "" {
		r.bad(at+".redisPassword", "want redisAddress too")
	}
	s := k.Shared
	if s.Cluster != "" && s.Service != "" {
		r.bad(at+".shared", "want cluster or service, got both")
	}
	checkObject(at+".shared.cluster", "RayCluster", s.Cluster, r)
	checkObject(at+".shared.service", "RayService", s.Service, r)
	if s.Autoscaling && !k.Shares() {
		r.bad(at+".shared.autoscaling", "want cluster or service too")
	}
	if len(k.Kubernetes.Discover) > 0 && k.Shares() {
		r.bad(at+".kubernetes.discover", "want none beside shared: have a fleet of its own route to engines of others")
	}
}

// checkPods notes what is wrong with a section whatever the others say.
func checkPods(at string, p *KubernetesPods, r *report) {
	optional(r, at+".workload", p.Workload, "Deployment", "StatefulSet", "RayCluster")
	if p.Image != "" && (!only(p.Image, letters+digits+"._-/:@") || !only(p.Image[:1], letters+digits)) {
		r.bad(at+".image", "want an image such as vllm/vllm-openai:v0.32.0, got %s", quote(p.Image))
	}
	optional(r, at+".pullPolicy", p.PullPolicy, "Always", "IfNotPresent", "Never")
	for i, s := range p.PullSecrets {
		if field := at + ".pullSecrets[" + strconv.Itoa(i) + "]"; s == "" {
			r.bad(field, "want the name of a Secret, got nothing")
		} else {
			checkObject(field, "Secret", s, r)
		}
	}
	checkQuantities(at, "cpu", p.CPU, p.CPULimit, "500m or 2", leastCPU, mostCPUs, r)
	checkQuantities(at, "memory", p.Memory, p.MemoryLimit, "512Mi or 16Gi", leastMemory, mostMemory, r)
	if domain, name, _ := strings.Cut(p.GPUResource, "/"); p.GPUResource != "" && (!isSubdomain(domain) || !isLabelValue(name) || name == "") {
		r.bad(at+".gpuResource", "want a resource such as nvidia.com/gpu or nvidia.com/mig-3g.40gb, got %s", quote(p.GPUResource))
	}
	checkObject(at+".runtimeClass", "RuntimeClass", p.RuntimeClass, r)
	checkObject(at+".priorityClass", "PriorityClass", p.PriorityClass, r)
	checkObject(at+".serviceAccount", "ServiceAccount", p.ServiceAccount, r)
	checkSecret(at+".huggingFaceToken", p.HuggingFaceToken, r)
	checkData(at+".data", &p.Data, r)
	if !isShare(p.MaxUnavailable) {
		r.bad(at+".maxUnavailable", "want a number from 0 to %d or a percentage such as 25%%, got %s", MaxReplicas, quote(p.MaxUnavailable))
	}
	for _, key := range slices.Sorted(maps.Keys(p.Pod)) {
		field := join(at+".pod", key)
		if key != "metadata" && key != "spec" {
			r.bad(field, "unknown field, want metadata or spec, as a pod template has them")
		} else if _, isMap := p.Pod[key].(map[string]any); !isMap {
			r.bad(field, "want a mapping, as a pod template has it")
		}
	}
}

func checkData(at string, d *KubernetesData, r *report) {
	var given []string
	note := func(name string, is bool) {
		if is {
			given = append(given, name)
		}
	}
	note("claim", d.Claim != "")
	note("size", d.Size != 0)
	note("hostPath", d.HostPath != "")
	if len(given) > 1 {
		r.bad(at, "want at most one of claim, size and hostPath, got %s", strings.Join(given, " and "))
	}
	checkObject(at+".claim", "PersistentVolumeClaim", d.Claim, r)
	checkObject(at+".storageClass", "StorageClass", d.StorageClass, r)
	optional(r, at+".accessMode", d.AccessMode, "ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany", "ReadWriteOncePod")
	if d.Size != 0 && d.Size < leastMemory {
		r.bad(at+".size", "want at least 1MiB, got %v", d.Size)
	}
	if d.Size == 0 && d.StorageClass != "" {
		r.bad(at+".storageClass", "want size too: it is for a claim that is made")
	}
	if d.Size == 0 && d.AccessMode != "" {
		r.bad(at+".accessMode", "want size too: it is for a claim that is made")
	}
	if p := d.HostPath; p != "" && (!strings.HasPrefix(p, "/") || slices.Contains(strings.Split(p, "/"), "..")) {
		r.bad(at+".hostPath", "want an absolute path without .., got %s", quote(p))
	}
}

// checkKubernetesFleet notes what goes with a section by itself and not with the platform, or with the model that has it.
func checkKubernetesFleet(f *Fleet, at string, r *report) {
	kuberay := f.Platform.KubeRay != nil
	if f.Platform.KubeRay.Shares() { // no pods are made
		return
	}
	ray := func(field, workload string) {
		if workload == "RayCluster" && !kuberay {
			r.bad(field, "want platform kuberay for a RayCluster")
		}
	}
	ray(at+".pods.workload", f.Platform.OnKubernetes().Pods.Workload)
	for i := range f.Models {
		field, own, all := "models["+strconv.Itoa(i)+"].kubernetes", &f.Models[i], f.Engine(f.Models[i])
		ray(field+".workload", own.Kubernetes.Workload)
		if hosts := own.Resources.Hosts; hosts > 1 && all.Kubernetes.Workload == "Deployment" {
			r.bad(field+".workload", "want StatefulSet or RayCluster for an engine of %d hosts, got Deployment", hosts)
		}
		if k := &own.Kubernetes; k.CPU != "" || k.CPULimit != "" { // else it is said of the platform's
			checkLimit(field+".cpuLimit", all.Kubernetes.CPU, all.Kubernetes.CPULimit, r)
		}
		if k := &own.Kubernetes; k.Memory != "" || k.MemoryLimit != "" {
			checkLimit(field+".memoryLimit", all.Kubernetes.Memory, all.Kubernetes.MemoryLimit, r)
		}
	}
}

// checkQuantities notes what is no quantity, or none that a pod would ask for, and a limit below the request.
func checkQuantities(at, name, request, limit, example string, low, high float64, r *report) {
	for i, text := range []string{request, limit} {
		field := at + "." + name + []string{"", "Limit"}[i]
		switch n, ok := quantity(text); {
		case text == "":
		case !ok:
			r.bad(field, "want a quantity such as %s, got %s", example, quote(text))
		case n < low:
			r.bad(field, "want a quantity such as %s, got %s, which is less than a pod can run with", example, quote(text))
		case n > high:
			r.bad(field, "want a quantity such as %s, got %s, which no node has", example, quote(text))
		}
	}
	checkLimit(at+"."+name+"Limit", request, limit, r)
}

func checkLimit(field, request, limit string, r *report) {
	least, asked := quantity(request)
	most, bound := quantity(limit)
	if asked && bound && most < least {
		r.bad(field, "want at least what is asked for (%s), got %s", request, limit)
	}
}

// checkSecret notes a SecretKey that names none.
func checkSecret(at string, s SecretKey, r *report) {
	if s.Name == "" && s.Key != "" {
		r.bad(at+".name", "want the name of a Secret, got nothing")
	}
	checkObject(at+".name", "Secret", s.Name, r)
	if s.Key != "" && (!only(s.Key, letters+digits+"-_.") || len(s.Key) > 253) {
		r.bad(at+".key", "want a key of letters, digits, dashes, dots and underscores, got %s", quote(s.Key))
	}
}

// checkObject notes what can't be the name of an object. Nothing is none.
func checkObject(field, kind, name string, r *report) {
	if name != "" && !isSubdomain(name) {
		r.bad(field, "want the name of a %s: lower-case letters, digits, dashes and dots, got %s", kind, quote(name))
	}
}

// optional is oneOf for a field whose default is none of its values.
func optional(r *report, field, got string, want ...string) {
	if got != "" {
		oneOf(r, field, got, want...)
	}
}
