//go:build real

package real

import (
	"testing"
	"time"
)

func TestRayLab(t *testing.T) {
	c := startRay(t, rayOptions{Workers: 1, Token: true, Durable: true})
	t.Log(c.must("nodes"))
	w := c.nodes[1]
	b := time.Now()
	g := c.head.kill("gcs_server")
	time.Sleep(3 * time.Second)
	c.head.again(g)
	c.await("gcs", func() bool { return c.head.alive() && w.alive() })
	t.Log("gcs again", time.Since(b))
	time.Sleep(10 * time.Second)
	t.Log(c.must("nodes"))
	for _, n := range c.nodes {
		t.Log(n.name, len(n.processes(program("raylet"))))
	}
	b = time.Now()
	t.Log(c.python(`import ray; ray.init(log_to_driver=False); print(ray.get(ray.remote(lambda: 3).remote()))`))
	for _, n := range c.nodes {
		n.wipe()
	}
	for _, n := range c.nodes {
		n.start()
	}
	t.Log("cluster again", time.Since(b))
}
