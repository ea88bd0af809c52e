package control

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
)

func TestEventsOfHosts(t *testing.T) {
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	asked := mobula.Host{Name: "h", Silent: "has not answered yet"}
	well := mobula.Host{Name: "h", Heard: noon, Devices: make([]mobula.Device, 2)}
	silent := mobula.Host{Name: "h", Heard: noon, Silent: "connection refused"}
	for name, tc := range map[string]struct {
		before []mobula.Host
		after  mobula.Host
		want   []Event
	}{
		"new":                   {nil, asked, []Event{{Reason: "HostJoined", Message: "host h is there, and is asked what it has"}}},
		"new and known well":    {nil, well, []Event{{Reason: "HostJoined", Message: "host h is there with 2 GPUs"}}},
		"answers at first":      {[]mobula.Host{asked}, well, []Event{{Reason: "HostAnswers", Message: "it has 2 GPUs"}}},
		"never answers":         {[]mobula.Host{asked}, asked, nil},
		"falls silent":          {[]mobula.Host{well}, silent, []Event{{Reason: "HostSilent", Message: "connection refused", Warning: true}}},
		"is back":               {[]mobula.Host{silent}, well, []Event{{Reason: "HostBack", Message: "it answers again"}}},
		"goes on as it was":     {[]mobula.Host{well}, well, nil},
		"stays silent":          {[]mobula.Host{silent}, silent, nil},
		"silent in other words": {[]mobula.Host{silent}, mobula.Host{Name: "h", Heard: noon, Silent: "no route to host"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			for i := range tc.want {
				tc.want[i].Object = "host/h"
			}
			require.Empty(t, cmp.Diff(tc.want, changes(&observation{hosts: tc.before}, &observation{hosts: []mobula.Host{tc.after}})))
		})
	}
}
