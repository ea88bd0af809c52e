package ray

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRecordsThatRayWritesAgainAreFoundAndThoseOfOthersAreNot(t *testing.T) {
	v := newView("prod")
	ours := map[string]string{metaOwner: "prod", metaControl: "c"}
	v.list([]Job{
		{ID: "mobula-prod-abcdefghi2", Status: "SUCCEEDED", Metadata: ours},
		{ID: "mobula-prod-abcdefghi3", Status: "FAILED"},
		{ID: "mobula-prod-r-llama-3fa9c1-xk2p4-abcdefghi4", Status: "FAILED"},
		{ID: "mobula-prod-abcdefghi5", Status: "RUNNING"},
		{ID: "mobula-prod-abcdefghi6", Status: "FAILED", Metadata: map[string]string{"a": "b"}},
		{ID: "mobula-prod-nightly", Status: "FAILED"},
	}, "c", time.Unix(1, 0))
	require.Len(t, v.jobs, 1)
	require.Equal(t, []string{"mobula-prod-abcdefghi3", "mobula-prod-r-llama-3fa9c1-xk2p4-abcdefghi4"}, v.ghosts)
}
