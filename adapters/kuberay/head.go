package kuberay

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strconv"
	"unicode"

	rayv1 "github.com/ray-project/kuberay/ray-operator/apis/ray/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

const (
	dashboardPort = 8265
	tokenKey      = "auth_token"
	maxSecretName = 50
)

// ErrNoCluster says that the shared RayCluster or RayService is not there.
var ErrNoCluster = errors.New("no such Ray cluster")

// Head finds a RayCluster that engines share, of its own or a RayService's active one: the URL of its dashboard at the head's present
// address, and the token, empty when it wants none. Both change with the head pod, the RayService's with each of its upgrades too. It needs get on rayclusters, rayservices and the Secret of the token. The error wraps
// adapters.ErrUnavailable when it may pass, ErrNoCluster when there is none of that name.
func Head(ctx context.Context, client dynamic.Interface, namespace string, shared mobula.KubeRayShared) (address string, token mobula.Secret, err error) {
	name := shared.Cluster
	if shared.Service != "" {
		if name, err = activeCluster(ctx, client, namespace, shared.Service); err != nil {
			return "", "", err
		}
	}
	if name == "" {
		return "", "", errors.New("platform.kuberay.shared: want the name of a cluster or service")
	}
	var rc rayv1.RayCluster
	if err := get(ctx, client, resource("rayclusters"), namespace, name, &rc); err != nil {
		return "", "", err
	}
	if token, err = authToken(ctx, client, &rc); err != nil {
		return "", "", err
	}
	return "http://" + net.JoinHostPort(headHost(&rc, namespace), strconv.Itoa(headPort(&rc))), token, nil
}

// headHost is where the head is reached: at its Service's IP, which is the head pod's for the headless one that KubeRay makes. Before the
// operator has seen one it is the Service's name.
func headHost(rc *rayv1.RayCluster, namespace string) string {
	for _, ip := range []string{rc.Status.Head.ServiceIP, rc.Status.Head.PodIP} {
		if net.ParseIP(ip) != nil {
			return ip
		}
	}
	return headService(rc) + "." + namespace + ".svc"
}

// activeCluster names the RayCluster that a RayService serves from: another one after each of its upgrades.
func activeCluster(ctx context.Context, client dynamic.Interface, namespace, service string) (string, error) {
	var rs rayv1.RayService
	if err := get(ctx, client, resource("rayservices"), namespace, service, &rs); err != nil {
		return "", err
	}
	name := rs.Status.ActiveServiceStatus.RayClusterName
	if name == "" {
		return "", fmt.Errorf("RayService %s/%s has no active RayCluster yet (see kubectl -n %s describe rayservice %s): %w", namespace, service, namespace, service, adapters.ErrUnavailable)
	}
	return name, nil
}

func headService(rc *rayv1.RayCluster) string {
	if name := rc.Status.Head.ServiceName; name != "" {
		return name
	}
	if s := rc.Spec.HeadGroupSpec.HeadService; s != nil && s.Name != "" {
		return s.Name
	}
	return rc.Name + "-head-svc"
}

func headPort(rc *rayv1.RayCluster) int {
	if port, err := strconv.Atoi(rc.Spec.HeadGroupSpec.RayStartParams["dashboard-port"]); err == nil && port > 0 && port < 1<<16 {
		return port
	}
	return dashboardPort
}

// authToken reads the token where KubeRay keeps it.
func authToken(ctx context.Context, client dynamic.Interface, rc *rayv1.RayCluster) (mobula.Secret, error) {
	auth := rc.Spec.AuthOptions
	switch {
	case auth == nil || auth.Mode != rayv1.AuthModeToken: // as the operator has it
		return "", nil
	case auth.EnableK8sTokenAuth != nil && *auth.EnableK8sTokenAuth:
		return "", fmt.Errorf("RayCluster %s/%s wants tokens of Kubernetes (authOptions.enableK8sTokenAuth), which is not supported: use authOptions.mode token without it", rc.Namespace, rc.Name)
	}
	name := secretName(rc.Name)
	if auth.SecretName != nil && *auth.SecretName != "" {
		name = *auth.SecretName
	}
	o, err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).Namespace(rc.Namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return "", fmt.Errorf("secret %s/%s with the token of RayCluster %s is not there yet: KubeRay 1.5.1 or newer makes it: %w", rc.Namespace, name, rc.Name, adapters.ErrUnavailable)
	case err != nil:
		return "", explain(fmt.Sprintf("read the secret %s/%s with the token of a RayCluster", rc.Namespace, name), err)
	}
	encoded, _, _ := unstructured.NestedString(o.Object, "data", tokenKey)
	token, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(token) == 0 {
		return "", fmt.Errorf("secret %s/%s has no key %s with the token of RayCluster %s", rc.Namespace, name, tokenKey, rc.Name)
	}
	return mobula.Secret(token), nil
}

// secretName is how KubeRay calls the Secret of a RayCluster's token: the end of a long name, a letter first.
func secretName(cluster string) string {
	if len(cluster) > maxSecretName {
		cluster = cluster[len(cluster)-maxSecretName:]
	}
	if first := rune(cluster[0]); unicode.IsDigit(first) || unicode.IsPunct(first) {
		cluster = "r" + cluster[1:]
	}
	return cluster
}

// get reads an object into a type of KubeRay's. Fields that this version doesn't know are passed over.
func get(ctx context.Context, client dynamic.Interface, what schema.GroupVersionResource, namespace, name string, into any) error {
	o, err := client.Resource(what).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("%s %s in namespace %s: %w: it is made by you, not by Mobula (platform.kuberay.shared)", what.Resource, name, namespace, ErrNoCluster)
	}
	if err != nil {
		return explain(fmt.Sprintf("read %s %s in namespace %s", what.Resource, name, namespace), err)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, into); err != nil {
		return fmt.Errorf("read %s %s in namespace %s: %w", what.Resource, name, namespace, err)
	}
	return nil
}

// explain adds to an error of the API server what was tried, and ErrUnavailable unless asking again won't help.
func explain(what string, err error) error {
	switch {
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s: %w: the role of charts/mobula grants it with platform kuberay", what, err)
	case apierrors.IsNotFound(err), apierrors.IsBadRequest(err), apierrors.IsInvalid(err):
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %w", what, adapters.ErrUnavailable, err)
}
