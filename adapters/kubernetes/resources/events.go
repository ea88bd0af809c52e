package resources

import (
	"context"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/mobula-serve/mobula/kube"
)

// Event is something that happened, for people.
type Event struct {
	Warning bool
	// Object is "fleet", "model/ID", or of another kind, which is told of the Fleet.
	Object, Reason, Message string
}

// Events writes Events of the fleet's objects, so that kubectl describe shows them. Equal ones are counted, too many are left out.
type Events struct {
	source      *Source
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder
}

// NewEvents begins to write; Close ends it.
func NewEvents(ctx context.Context, source *Source, client kubernetes.Interface) *Events {
	b := record.NewBroadcaster(record.WithContext(ctx))
	b.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events(source.o.Namespace)})
	return &Events{source, b, b.NewRecorder(runtime.NewScheme(), corev1.EventSource{Component: kube.ManagedBy})}
}

// Close ends writing. What is still on the way may be lost.
func (e *Events) Close() { e.broadcaster.Shutdown() }

// Tell writes an event of the object that it is about. It does not wait.
func (e *Events) Tell(event Event) {
	kind := corev1.EventTypeNormal
	if event.Warning {
		kind = corev1.EventTypeWarning
	}
	about, message := e.source.objects().Fleet, event.Message
	if model, ok := strings.CutPrefix(event.Object, "model/"); ok {
		if o, found := e.source.Object(model); found {
			about = o
		} else {
			message = event.Object + ": " + message
		}
	} else if event.Object != "fleet" {
		message = event.Object + ": " + message
	}
	if about == nil {
		return
	}
	e.recorder.Event(&corev1.ObjectReference{
		APIVersion: about.GetAPIVersion(), Kind: about.GetKind(), Namespace: about.GetNamespace(), Name: about.GetName(),
		UID: about.GetUID(), ResourceVersion: about.GetResourceVersion(),
	}, kind, event.Reason, message)
}
