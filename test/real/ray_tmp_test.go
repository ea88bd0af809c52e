//go:build real

package real

import "testing"
import "time"

func TestTmp(t *testing.T) {
	c, binary := startRay(t, rayOptions{Workers: 1, Token: true, Durable: true}), build(t)
	f := c.fleet(t, binary, c.file("", simModel(binary, "3", "")))
	f.AwaitReady("org/chat", 3)
	f.Run("scale", "org/chat", "4")
	f.AwaitReady("org/chat", 4)
	f.Run("scale", "org/chat", "2")
	f.AwaitReady("org/chat", 2)
	f.Run("delete", "--all", "--yes")
	for range 60 {
		time.Sleep(time.Second)
		t.Log(c.left())
	}
	t.Log(f.Run("events"))
	t.Fail()
}
