package kubernetes

import (
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

// backing is what one EndpointSlice says of the Service that it belongs to.
type backing struct {
	service string // namespace/name
	ready   bool   // an address takes connections and stays
	serves  bool   // an address takes connections, be it about to go
}

func (b backing) and(o backing) backing {
	return backing{b.service, b.ready || o.ready, b.serves || o.serves}
}

// findServices has f find Services, each one an endpoint while there is an address behind it. EndpointSlices bear the labels of their Service,
// so that the same selector finds them.
func (f *finder) findServices(changed func()) {
	services := &store[*found]{read: f.query.service, same: sameFound, changed: changed}
	behindThem := &store[backing]{read: readSlice, same: func(a, b backing) bool { return a == b }, changed: changed}
	client, namespace, selector := f.connection.Client, f.query.namespace, f.query.entry.Selector
	f.watches = []*watched{
		newWatched("services", &corev1.Service{}, client.CoreV1().Services(namespace), selector, services, changed),
		newWatched("endpointslices", &discoveryv1.EndpointSlice{}, client.DiscoveryV1().EndpointSlices(namespace), selector, behindThem, changed),
	}
	f.each = func(yield func(string, *found) bool) {
		behind := map[string]backing{}
		for _, i := range behindThem.list() {
			behind[i.value.service] = behind[i.value.service].and(i.value)
		}
		for _, i := range services.list() {
			s, b := i.value, behind[i.key]
			switch {
			case s.leftOut != "" || b.ready:
			case b.serves: // all that is left of it is going
				going := *s
				going.endpoint.Draining = true
				s = &going
			default:
				continue
			}
			if !yield(i.key, s) {
				return
			}
		}
	}
}

// service gives what a Service is to the query.
func (q query) service(object any) (*found, bool) {
	s, ok := object.(*corev1.Service)
	switch {
	case !ok:
		return nil, false
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		return &found{leftOut: "is an alias of a DNS name: left out; list what it stands for as a static endpoint or a provider"}, true
	case s.Spec.ClusterIP == corev1.ClusterIPNone:
		return &found{leftOut: "is headless, its name is no single address: left out; select its pods (by: pods), or give it a cluster IP"}, true
	}
	port, problem := servicePort(s, q.entry.Port)
	if problem != "" {
		return &found{leftOut: problem}, true
	}
	address := strconv.Itoa(int(port))
	return &found{endpoint: mobula.Endpoint{
		ID:       s.Name + "." + s.Namespace + ":" + address,
		URL:      "http://" + net.JoinHostPort(s.Name+"."+s.Namespace+".svc", address),
		Models:   q.entry.Models,
		Role:     q.entry.Role,
		Labels:   map[string]string{"namespace": s.Namespace, "service": s.Name},
		APIKey:   q.key,
		Draining: s.DeletionTimestamp != nil,
	}}, true
}

// servicePort finds the port that is wanted, as podPort does. Services listen on no port that they don't name.
func servicePort(s *corev1.Service, want string) (port int32, problem string) {
	var all []int32
	for _, p := range s.Spec.Ports {
		if p.Protocol != corev1.ProtocolTCP && p.Protocol != "" {
			continue
		}
		if want != "" && (p.Name == want || strconv.Itoa(int(p.Port)) == want) || want == "" && p.Port == kube.Port {
			return p.Port, ""
		}
		all = append(all, p.Port)
	}
	if want == "" && len(all) == 1 {
		return all[0], ""
	}
	return 0, noPort(want, "Service", all)
}

// readSlice gives what an EndpointSlice says.
func readSlice(object any) (backing, bool) {
	s, ok := object.(*discoveryv1.EndpointSlice)
	if !ok || s.Labels[discoveryv1.LabelServiceName] == "" {
		return backing{}, false
	}
	b := backing{service: s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}
	for _, e := range s.Endpoints {
		if len(e.Addresses) == 0 {
			continue
		}
		ready := e.Conditions.Ready == nil || *e.Conditions.Ready // not to know is to be ready, says the API
		serves := ready
		if e.Conditions.Serving != nil {
			serves = *e.Conditions.Serving
		}
		b.ready, b.serves = b.ready || ready, b.serves || serves
	}
	return b, b.ready || b.serves
}
