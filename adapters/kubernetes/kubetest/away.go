package kubetest

// DeletePod deletes a pod by another way than the API server, so that it can be down or its watches cut meanwhile. Options.Lingers holds for it too.
func (c *Cluster) DeletePod(namespace, name string) error {
	return c.onPod(namespace, name, func(o *object) { c.erase(ref{c.pods(), o.key}, deletion{grace: -1}) })
}
