//go:build real

package real

import (
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestRayLab(t *testing.T) {
	c := startRay(t, rayOptions{Workers: 1, Token: true, Durable: true})
	c.python(`
import ray
ray.init(namespace="theirs", log_to_driver=False)
@ray.remote(num_cpus=0)
class Counter:
    def pid(self):
        import os
        return os.getpid()
for namespace in "theirs", "mobula":
    ray.get(Counter.options(name="counter", namespace=namespace, lifetime="detached").remote().pid.remote())
`)
	t.Logf("%+v", c.must("actors"))
	for _, n := range c.nodes {
		for _, p := range n.processes(func(p *rayProcess) bool { return len(p.argv[0]) > 5 && p.argv[0][:5] == "ray::" }) {
			t.Log(n.name, p.argv)
		}
	}
	f := &rayFleet{c: c, t: t}
	killed := filepath.Join(t.TempDir(), "killed")
	g := f.gate(t, `if mkdir `+killed+`; then
	coproc launcher { exec $python -u "$@"; }
	pid=$launcher_PID
	while read -r line <&"${launcher[0]}"; do echo "$line"; case $line in started*) kill -KILL $pid; exit 9 ;; esac; done
fi`)
	for range 2 {
		out, err := exec.Command(g, "-c", "print('hello'); print('started x'); import time; time.sleep(2); print('end')").CombinedOutput()
		t.Log(string(out), err)
	}
	t.Log(c.ask(http.MethodPost, "/api/jobs/", `{"entrypoint":"sleep 1000","submission_id":"mobula-lab-x"}`))
	t.Log(c.jobs())
	c.clear()
	t.Logf("%+v %v", c.must("actors"), c.jobs())
	for _, port := range []string{"52365", "6379"} {
		resp, err := c.client.Get("http://" + c.head.host.IP + ":" + port + "/api/version")
		if err == nil {
			resp.Body.Close()
			t.Log(port, resp.Status)
		} else {
			t.Log(port, err)
		}
	}
}
