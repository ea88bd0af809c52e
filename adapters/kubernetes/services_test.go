package kubernetes

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mobula-serve/mobula"
)

func service(change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "chat", Labels: map[string]string{"app": "vllm"}},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.7", Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func TestServices(t *testing.T) {
	ports := func(all ...corev1.ServicePort) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Spec.Ports = all }
	}
	for name, tc := range map[string]struct {
		service *corev1.Service
		port    string
		want    string // the port
		leftOut string
	}{
		"the only port":              {service: service(), want: "80"},
		"by name":                    {service: service(ports(corev1.ServicePort{Name: "a", Port: 1}, corev1.ServicePort{Name: "b", Port: 2})), port: "b", want: "2"},
		"by number":                  {service: service(ports(corev1.ServicePort{Name: "a", Port: 1}, corev1.ServicePort{Name: "b", Port: 2})), port: "1", want: "1"},
		"8000 among several":         {service: service(ports(corev1.ServicePort{Port: 1}, corev1.ServicePort{Port: 8000})), want: "8000"},
		"several, none of them 8000": {service: service(ports(corev1.ServicePort{Port: 1}, corev1.ServicePort{Port: 2})), leftOut: "set port"},
		"a number that it has not":   {service: service(), port: "81", leftOut: "has no port named 81"},
		"headless":                   {service: service(func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }), leftOut: "headless"},
		"an alias":                   {service: service(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }), leftOut: "alias of a DNS name"},
	} {
		t.Run(name, func(t *testing.T) {
			got, kept := query{key: "secret", entry: mobula.KubernetesDiscover{Port: tc.port, Models: []string{"m"}}}.service(tc.service)
			require.True(t, kept)
			require.Contains(t, got.leftOut, tc.leftOut)
			if tc.leftOut != "" {
				return
			}
			require.Empty(t, cmp.Diff(&found{endpoint: mobula.Endpoint{
				ID: "chat.team:" + tc.want, URL: "http://chat.team.svc:" + tc.want, Models: []string{"m"}, APIKey: "secret",
				Labels: map[string]string{"namespace": "team", "service": "chat"},
			}}, got, cmp.AllowUnexported(found{})))
		})
	}
}

func TestWhatIsBehindAService(t *testing.T) {
	endpoint := func(ready, serving *bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: ready, Serving: serving}}
	}
	for name, tc := range map[string]struct {
		all  []discoveryv1.Endpoint
		want backing
	}{
		"nothing":              {nil, backing{}},
		"ready":                {[]discoveryv1.Endpoint{endpoint(new(true), new(true))}, backing{ready: true, serves: true}},
		"not said":             {[]discoveryv1.Endpoint{endpoint(nil, nil)}, backing{ready: true, serves: true}},
		"not ready":            {[]discoveryv1.Endpoint{endpoint(new(false), nil)}, backing{}},
		"not ready nor serves": {[]discoveryv1.Endpoint{endpoint(new(false), new(false))}, backing{}},
		"going":                {[]discoveryv1.Endpoint{endpoint(new(false), new(true))}, backing{serves: true}},
		"one of two":           {[]discoveryv1.Endpoint{endpoint(new(false), new(false)), endpoint(new(true), nil)}, backing{ready: true, serves: true}},
		"no address":           {[]discoveryv1.Endpoint{{}}, backing{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, kept := readSlice(slice("chat-1", "chat", tc.all...))
			require.Equal(t, tc.want.ready || tc.want.serves, kept)
			tc.want.service = "team/chat"
			require.Equal(t, tc.want, got)
		})
	}
	_, kept := readSlice(slice("chat-1", ""))
	require.False(t, kept, "of no Service")
}

func slice(name, service string, all ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "team", Name: name, Labels: map[string]string{"app": "vllm"}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: all,
	}
	if service != "" {
		s.Labels[discoveryv1.LabelServiceName] = service
	}
	return s
}
