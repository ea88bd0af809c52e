package ray

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"
)

// scaled makes a list of n rows of a golden one's first row, each with IDs and a name of its own, as if all were ours.
func scaled(b *testing.B, name, id, called string, n int) []byte {
	b.Helper()
	row := gjson.Get(readGolden(b, name).body, "data.result.result.0").Raw
	require.NotEmpty(b, row)
	var all strings.Builder
	fmt.Fprintf(&all, `{"result": true, "msg": "", "data": {"result": {"total": %d, "num_after_truncation": %d, "num_filtered": %d, "result": [`, n, n, n)
	for i := range n {
		if i > 0 {
			all.WriteString(", ")
		}
		all.WriteString(strings.NewReplacer(
			`"`+id+`": "`, fmt.Sprintf(`"%s": "%08x`, id, i), called, "mobula/own/llama-3fa9-"+strconv.Itoa(i), `"vserve"`, `"mobula"`,
			`engine@10.77.0.2:46127`, `mobula {\"v\":1,\"url\":\"http://10.77.0.2:46127\",\"fleet\":\"f\",\"model\":\"m\",\"revision\":\"r\",\"replica\":\"llama-3fa9-`+
				strconv.Itoa(i)+`\",\"gen\":0,\"pid\":19995,\"devices\":\"0,1\",\"readyAt\":1795356877.3}`,
		).Replace(row))
	}
	all.WriteString(`], "partial_failure_warning": "", "warnings": null}}}`)
	return []byte(all.String())
}

// BenchmarkDashboardState is one poll of 200 nodes, 1,000 actors and 1,000 groups with HTTP over loopback; the server's work,
// a few writes, is counted too. A poll each second may take 10 ms, 1 % of a core.
func BenchmarkDashboardState(b *testing.B) {
	actors := scaled(b, "state_actors.json", "actor_id", "demo-0", 1000)
	changed := []byte(strings.Replace(string(actors), `"ALIVE"`, `"DYING"`, 1))
	groups := scaled(b, "state_pgs.json", "placement_group_id", "demo-1-pg", 1000)
	nodes := scaled(b, "state_nodes.json", "node_id", "none", 200)
	for _, bench := range []struct {
		name    string
		changes bool
	}{{"unchanged", false}, {"changed actors", true}} {
		b.Run(bench.name, func(b *testing.B) {
			var turn atomic.Int64
			d := dashboardTo(b, func(w http.ResponseWriter, r *http.Request) {
				body := groups
				switch {
				case strings.HasSuffix(r.URL.Path, "/nodes"):
					body = nodes
				case strings.HasSuffix(r.URL.Path, "/actors") && bench.changes && turn.Add(1)%2 == 0:
					body = changed
				case strings.HasSuffix(r.URL.Path, "/actors"):
					body = actors
				}
				w.Header().Set("Content-Length", strconv.Itoa(len(body)))
				_, _ = w.Write(body)
			})
			poll := func() {
				s, err := d.State(b.Context(), "mobula")
				if err != nil || len(s.Actors) != 1000 || len(s.Groups) != 1000 || len(s.Nodes) != 200 || s.Partial != "" {
					b.Fatalf("error %v, state %+v", err, s)
				}
			}
			poll()
			b.SetBytes(int64(len(actors) + len(groups) + len(nodes)))
			b.ReportAllocs()
			for b.Loop() {
				poll()
			}
		})
	}
}

func BenchmarkDashboardDecode(b *testing.B) {
	body := scaled(b, "state_actors.json", "actor_id", "demo-0", 1000)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		rows, _, err := openList(body)
		if err != nil || len(decodeActors(rows, "mobula")) != 1000 {
			b.Fatal(err)
		}
	}
}
