package ray

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/mobula-serve/mobula/adapters"
)

// dashboardMaxJobLog bounds what is kept of a job's output: its end.
const dashboardMaxJobLog = 64 << 10

// Upload stores a package unless it is there.
func (d *Dashboard) Upload(ctx context.Context, name string, content []byte) error {
	path := "/api/packages/gcs/" + url.PathEscape(name)
	what := "look for package " + name
	said, err := d.get(ctx, what, path, nil, dashboardMaxAnswer)
	switch {
	case err == nil && len(said) > 0: // Ray says nothing
		return d.failed(what, fmt.Errorf("%w: %s", errGarbled, dashboardText(said)))
	case err == nil || !errors.Is(err, errNoRoute):
		return err
	}
	_, err = d.do(ctx, dashboardCall{
		what: "upload package " + name, method: http.MethodPut, path: path, body: content, kind: "application/octet-stream", most: dashboardMaxAnswer,
	})
	return err
}

// Submit starts a job. One whose ID is known already is submitted: that is no error.
func (d *Dashboard) Submit(ctx context.Context, j Submission) error {
	body, err := json.Marshal(struct {
		Entrypoint string            `json:"entrypoint"`
		ID         string            `json:"submission_id"`
		Metadata   map[string]string `json:"metadata,omitempty"`
		RuntimeEnv map[string]any    `json:"runtime_env,omitempty"`
	}{j.Entrypoint, j.ID, j.Metadata, j.RuntimeEnv})
	if err != nil {
		return fmt.Errorf("submit job %s: %w", j.ID, err)
	}
	what := "submit job " + j.ID
	said, err := d.do(ctx, dashboardCall{
		what: what, method: http.MethodPost, path: "/api/jobs/", body: body, kind: "application/json", most: dashboardMaxAnswer,
	})
	if err != nil && strings.Contains(err.Error(), "submission_id "+j.ID+" already exists") {
		return nil
	}
	if err == nil && (!gjson.ValidBytes(said) || gjson.GetBytes(said, "submission_id").Str != j.ID) {
		return d.failed(what, fmt.Errorf("%w: %s", errGarbled, dashboardText(said)))
	}
	return err
}

// Jobs lists all submitted jobs whose ID begins with the prefix.
func (d *Dashboard) Jobs(ctx context.Context, prefix string) ([]Job, error) {
	const what = "list the jobs"
	body, err := d.get(ctx, what, "/api/jobs/", nil, dashboardMaxState)
	if err != nil {
		return nil, err
	}
	jobs, err := decodeJobs(body, prefix)
	if err != nil {
		return nil, d.failed(what, err)
	}
	return jobs, nil
}

// errGarbled: the answer isn't what Ray says. It may be a proxy's page, while the dashboard behind it is away.
var errGarbled = fmt.Errorf("%w: the answer is not Ray's", adapters.ErrUnavailable)

func decodeJobs(body []byte, prefix string) ([]Job, error) {
	list := gjson.ParseBytes(body)
	if !gjson.ValidBytes(body) || !list.IsArray() {
		return nil, fmt.Errorf("%w: %s", errGarbled, dashboardText(body))
	}
	var jobs []Job
	list.ForEach(func(_, j gjson.Result) bool {
		id := j.Get("submission_id").Str
		if j.Get("type").Str != "SUBMISSION" || id == "" || !strings.HasPrefix(id, prefix) {
			return true
		}
		job := Job{
			ID: strings.Clone(id), Status: strings.Clone(j.Get("status").Str), Message: strings.Clone(j.Get("message").Str),
			JobID: strings.Clone(j.Get("job_id").Str), Started: milliseconds(j.Get("start_time")), Ended: milliseconds(j.Get("end_time")),
		}
		eachField(j.Get("metadata"), func(key, value gjson.Result) {
			if job.Metadata == nil {
				job.Metadata = map[string]string{}
			}
			job.Metadata[strings.Clone(key.Str)] = strings.Clone(value.String())
		})
		jobs = append(jobs, job)
		return true
	})
	return jobs, nil
}

func milliseconds(r gjson.Result) time.Time {
	if n := r.Int(); n > 0 {
		return time.UnixMilli(n)
	}
	return time.Time{}
}

// JobLogs gives the end of what a job has printed, at most 64 KiB; nothing for one that is unknown.
func (d *Dashboard) JobLogs(ctx context.Context, id string) (string, error) {
	what := "read the output of job " + id
	body, err := d.get(ctx, what, jobPath(id)+"/logs", nil, dashboardMaxState)
	if errors.Is(err, errNoRoute) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	log := gjson.GetBytes(body, "logs")
	if !gjson.ValidBytes(body) || log.Type != gjson.String {
		return "", d.failed(what, fmt.Errorf("%w: %s", errGarbled, dashboardText(body)))
	}
	text := []byte(log.Str)
	if more := len(text) - dashboardMaxJobLog; more > 0 {
		text = text[more:]
		text = text[bytes.IndexByte(text, '\n')+1:]
	}
	return string(text), nil
}

// StopJob ends a job. One that is unknown is fine.
func (d *Dashboard) StopJob(ctx context.Context, id string) error {
	return d.jobGone(d.do(ctx, dashboardCall{what: "stop job " + id, method: http.MethodPost, path: jobPath(id) + "/stop", most: dashboardMaxAnswer}))
}

// DeleteJob forgets a job that has ended. One that is unknown is fine.
func (d *Dashboard) DeleteJob(ctx context.Context, id string) error {
	return d.jobGone(d.do(ctx, dashboardCall{what: "delete job " + id, method: http.MethodDelete, path: jobPath(id), most: dashboardMaxAnswer}))
}

func (*Dashboard) jobGone(_ []byte, err error) error {
	if errors.Is(err, errNoRoute) {
		return nil
	}
	return err
}

func jobPath(id string) string { return "/api/jobs/" + url.PathEscape(id) }
