package sim

import (
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// models is which LoRAs are loaded, in order.
type models struct {
	mu    sync.RWMutex
	loras []LoRA
	max   int
}

func newModels(o *Options) (*models, error) {
	m := &models{max: o.MaxLoRAs}
	for _, l := range o.LoRAs {
		if l.Name == "" || l.Name == o.Model || m.has(l.Name) {
			return nil, fmt.Errorf("sim: LoRA name %q is empty or taken", l.Name)
		}
		if l.Path == "" {
			l.Path = l.Name
		}
		m.loras = append(m.loras, l)
	}
	return m, nil
}

func (m *models) find(name string) int {
	for i, l := range m.loras {
		if l.Name == name {
			return i
		}
	}
	return -1
}

func (m *models) has(name string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.find(name) >= 0
}

func (m *models) list() []LoRA {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return append([]LoRA(nil), m.loras...)
}

// listModels serves /v1/models.
func (c *call) listModels() {
	now := time.Now().Unix()
	card := func(dst []byte, id, root, parent string, maxLen int) []byte {
		dst = appendString(append(dst, `{"id":`...), id)
		dst = appendInt(append(dst, `,"object":"model","created":`...), now)
		dst = appendString(append(dst, `,"owned_by":"mobula-sim","root":`...), root)
		dst = appendOptional(append(dst, `,"parent":`...), parent)
		dst = append(dst, `,"max_model_len":`...)
		if maxLen > 0 {
			dst = appendInt(dst, maxLen)
		} else {
			dst = append(dst, "null"...)
		}
		dst = appendString(append(dst, `,"permission":[{"id":`...), "modelperm-"+newID())
		dst = appendInt(append(dst, `,"object":"model_permission","created":`...), now)
		return append(dst, `,"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}]}`...)
	}
	o := &c.e.opts
	dst := card([]byte(`{"object":"list","data":[`), o.Model, o.Model, "", o.MaxModelLen)
	for _, a := range o.Aliases {
		dst = card(append(dst, ','), a, o.Model, "", o.MaxModelLen)
	}
	for _, l := range c.e.models.list() {
		dst = card(append(dst, ','), l.Name, l.Path, o.Model, 0)
	}
	c.json(http.StatusOK, append(dst, "]}"...))
}

// loadLoRA serves /v1/load_lora_adapter. A path below /nonexistent or one that does not
// look like a path is not found.
func (c *call) loadLoRA() {
	name, path, p, err := c.loraRequest("lora_path")
	if err != nil {
		c.fail(err)
		return
	}
	o := &c.e.opts
	switch {
	case name == "" || path == "":
		c.fail(invalidInput("Both 'lora_name' and 'lora_path' must be provided."))
		return
	case name == o.Model || slices.Contains(o.Aliases, name):
		c.fail(invalidInput("The lora adapter '%s' conflicts with a served base model.", name))
		return
	case o.NoLoRA:
		c.fail(&apiError{
			status: http.StatusInternalServerError, kind: "InternalServerError",
			message: "Call to add_lora method failed: Worker failed with error 'LoRA is not enabled. Use --enable-lora to enable LoRA.', please check the stack trace above for the root cause",
		})
		return
	}
	m := c.e.models
	m.mu.Lock()
	defer m.mu.Unlock()
	at := m.find(name)
	switch {
	case at >= 0 && !p.bool("load_inplace", false):
		c.fail(invalidInput("The lora adapter '%s' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.", name))
		return
	case strings.HasPrefix(filepath.Clean(path), "/nonexistent"):
		c.fail(notFound("", "Loading lora %s failed: No adapter found for %s", name, path))
		return
	case at >= 0:
		m.loras[at].Path = path
	case len(m.loras) >= m.max:
		c.fail(badRequest("", "Loading lora %s failed: no room for more than %d", name, m.max))
		return
	default:
		m.loras = append(m.loras, LoRA{Name: name, Path: path})
	}
	c.text(http.StatusOK, "Success: LoRA adapter '"+name+"' added successfully.")
}

func invalidInput(format string, args ...any) *apiError {
	return &apiError{status: http.StatusBadRequest, kind: "InvalidUserInput", message: fmt.Sprintf(format, args...)}
}

// unloadLoRA serves /v1/unload_lora_adapter.
func (c *call) unloadLoRA() {
	name, _, _, err := c.loraRequest("")
	if err != nil {
		c.fail(err)
		return
	}
	m := c.e.models
	m.mu.Lock()
	defer m.mu.Unlock()
	at := m.find(name)
	if at < 0 {
		c.fail(notFound("", "The lora adapter '%s' cannot be found.", name))
		return
	}
	m.loras = append(m.loras[:at:at], m.loras[at+1:]...)
	c.text(http.StatusOK, "Success: LoRA adapter '"+name+"' removed successfully.")
}

func (c *call) loraRequest(pathField string) (name, path string, p *params, err *apiError) {
	if p, err = c.params(); err != nil {
		return "", "", nil, err
	}
	for _, field := range []string{"lora_name", pathField} {
		if _, ok := p.get(field); !ok && field != "" {
			p.missing(field)
		}
	}
	name = p.string("lora_name")
	if pathField != "" {
		path = p.string(pathField)
	}
	return name, path, p, p.bad.err()
}

// health serves /health and /ping: nothing, with 200 or 503.
func (c *call) health() {
	if c.e.faults.dead() {
		c.text(http.StatusServiceUnavailable, "")
		return
	}
	c.text(http.StatusOK, "")
}

// version serves /version.
func (c *call) version() {
	c.json(http.StatusOK, append(appendString([]byte(`{"version":`), Version), '}'))
}

// load serves /load.
func (c *call) load() {
	c.json(http.StatusOK, append(appendInt([]byte(`{"server_load":`), c.e.inFlight.Load()), '}'))
}

// serverInfo serves /server_info.
func (c *call) serverInfo() {
	o := &c.e.opts
	config := fmt.Sprintf("model='%s', simulated=True, max_seq_len=%d, block_size=%d, num_gpu_blocks=%d, max_num_seqs=%d",
		o.Model, o.MaxModelLen, o.BlockSize, o.Blocks, o.MaxNumSeqs)
	dst := appendString([]byte(`{"vllm_config":`), config)
	dst = append(dst, `,"vllm_env":{},"system_env":{"simulator":`...)
	c.json(http.StatusOK, append(appendString(dst, Version), "}}"...))
}

// sleep serves /sleep: no request starts, and the prefix cache is forgotten.
func (c *call) sleep() {
	level, err := strconv.ParseInt(c.r.URL.Query().Get("level"), 10, 32)
	if err != nil {
		level = 1
	}
	level = max(1, min(level, 2))
	c.e.asleep.Store(int32(level))
	c.e.sched.sleep(true)
	c.json(http.StatusOK, append(appendInt([]byte(`{"status":"sleeping","level":`), level), '}'))
}

// wakeUp serves /wake_up.
func (c *call) wakeUp() {
	c.e.asleep.Store(0)
	c.e.sched.sleep(false)
	c.json(http.StatusOK, []byte(`{"status":"awake","tags":null}`))
}

// isSleeping serves /is_sleeping.
func (c *call) isSleeping() {
	c.json(http.StatusOK, append(strconv.AppendBool([]byte(`{"is_sleeping":`), c.e.asleep.Load() > 0), '}'))
}

// resetPrefixCache serves /reset_prefix_cache.
func (c *call) resetPrefixCache() {
	c.e.sched.reset()
	c.json(http.StatusOK, []byte(`{"success":true}`))
}

// scaleOut serves the routes that vLLM has only with --enable-scale-out.
func (c *call) scaleOut() {
	c.fail(&apiError{
		status: http.StatusForbidden, kind: "PermissionDeniedError",
		message: "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them.",
	})
}
