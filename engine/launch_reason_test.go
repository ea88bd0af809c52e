package engine

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestFailureReasonIsTheLineThatAPersonNeeds(t *testing.T) {
	for name, tc := range map[string]struct{ tail, want string }{
		"nothing":                          {"", ""},
		"mobula's own error with its hint": {"error: unknown flag: --x\nhint: mobula sim --help", "error: unknown flag: --x"},
		"out of GPU memory while loading": {
			`(EngineCore_DP0 pid=4242) ERROR 11-22 19:40:43 [core.py:900]   File "/v/lib/python3.12/site-packages/torch/utils/_device.py", line 103, in __torch_function__
(EngineCore_DP0 pid=4242) ERROR 11-22 19:40:43 [core.py:900]     return func(*args, **kwargs)
(EngineCore_DP0 pid=4242) ERROR 11-22 19:40:43 [core.py:900] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 448.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 312.50 MiB is free.
(EngineCore_DP0 pid=4242) Process EngineCore_DP0:
(APIServer pid=4001) Traceback (most recent call last):
(APIServer pid=4001) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_DP0': 1}`,
			"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 448.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 312.50 MiB is free.",
		},
		"no room for the KV cache": {
			`(EngineCore_DP0 pid=9) ERROR 11-22 19:40:43 [core.py:900] ValueError: No available memory for the cache blocks. Try increasing ` + "`gpu_memory_utilization`" + ` when initializing the engine.
(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}`,
			"ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.",
		},
		"a worker of several": { // the words are those of vLLM's multiproc_executor
			`(Worker_TP1 pid=9) ERROR 11-22 19:40:43 [multiproc_executor.py:700] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 448.00 MiB.
(EngineCore_DP0 pid=8) ERROR 11-22 19:40:43 [core.py:900] Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause.
(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}`,
			"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 448.00 MiB.",
		},
		"another process has the GPU's memory": {
			`(EngineCore pid=9) ERROR 11-22 19:40:43 [core.py:900] ValueError: Free memory on device cuda:0 (3.1/79.1 GiB) on startup is less than desired GPU memory utilization (0.9, 71.2 GiB).
(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}`,
			"ValueError: Free memory on device cuda:0 (3.1/79.1 GiB) on startup is less than desired GPU memory utilization (0.9, 71.2 GiB).",
		},
		"an argument's value": {
			`Traceback (most recent call last):
  File "/v/bin/vllm", line 8, in <module>
    sys.exit(main())
ValueError: User-specified max_model_len (999999) is greater than the derived max_model_len (2048).`,
			"ValueError: User-specified max_model_len (999999) is greater than the derived max_model_len (2048).",
		},
		"the exception behind the wrapper": {
			`(EngineCore_DP0 pid=9) KeyError: 'layers.0.weight'
(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above.`,
			"KeyError: 'layers.0.weight'",
		},
		"only the wrapper": {
			`RuntimeError: Engine core initialization failed. See root cause above.
[rank0]: some noise`,
			"RuntimeError: Engine core initialization failed. See root cause above.",
		},
		"an unknown argument": {
			`usage: vllm serve [model_tag] [options]
vllm: error: unrecognized arguments: --tensr-parallel-size 2`,
			"vllm: error: unrecognized arguments: --tensr-parallel-size 2",
		},
		"port taken": {
			`  File "/v/lib/python3.12/site-packages/vllm/entrypoints/openai/api_server.py", line 1791, in create_server_socket
    sock.bind(addr)
OSError: [Errno 98] Address already in use
nanobind: leaked 2 instances!`,
			"OSError: [Errno 98] Address already in use",
		},
		"port taken, simulated engine": {
			`mobula: --port: listen tcp 127.0.0.1:8701: bind: address already in use`,
			`mobula: --port: listen tcp 127.0.0.1:8701: bind: address already in use`,
		},
		"a folder without a model": {
			`OSError: /models/x does not appear to have a file named config.json. Checkout 'https://huggingface.co//models/x/tree/main' for available files.
During handling of the above exception, another exception occurred:
ValueError: Invalid repository ID or local directory specified: '/models/x'`,
			"OSError: /models/x does not appear to have a file named config.json. Checkout 'https://huggingface.co//models/x/tree/main' for available files.",
		},
		"a model that does not exist": {
			`OSError: nobody/nothing is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'
If this is a private repository, make sure to pass a token`,
			"OSError: nobody/nothing is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'",
		},
		"a folder that is not there": {
			`    validate_repo_id(arg_value)
  File "/v/lib/python3.11/site-packages/huggingface_hub/utils/_validators.py", line 133, in validate_repo_id
    raise HFValidationError(
huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/nonexistent/model'. Use ` + "`repo_type`" + ` argument if needed.`,
			"huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/nonexistent/model'. Use `repo_type` argument if needed.",
		},
		"disk full": {
			`OSError: [Errno 28] No space left on device
RuntimeError: Data processing error: CAS service error`,
			"OSError: [Errno 28] No space left on device",
		},
		"the last line when nothing else speaks": {
			"INFO 11-22 19:40:43 [api_server.py:1] starting\nKilled",
			"Killed",
		},
		"a prefix alone is no line": {
			"boom\n(APIServer pid=8) ",
			"boom",
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.want, FailureReason(strings.Split(tc.tail, "\n")))
		})
	}
	require.True(t, AddressInUse("OSError: [Errno 98] Address already in use"))
	require.False(t, AddressInUse("ValueError: x"))
}

func TestFailureReasonIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tail := rapid.SliceOf(rapid.StringN(0, 1000, 4000)).Draw(t, "tail")
		got := FailureReason(tail)
		if len(got) > maxReason+len("…") || utf8.ValidString(strings.Join(tail, "")) && !utf8.ValidString(got) {
			t.Fatalf("%d bytes: %q", len(got), got)
		}
	})
}
