"""Tests of the launcher that need no Ray: package.go's tests run them. Engines here are small shell and Python programs."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
from unittest import mock

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import mobula_engine  # noqa: E402
import mobula_guard  # noqa: E402
import mobula_launcher  # noqa: E402

SERVER = """
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers()
    def log_message(self, *a): pass
print("serving", flush=True)
http.server.HTTPServer((sys.argv[1], int(sys.argv[2])), H).serve_forever()
"""
SERVE = [sys.executable, "-S", "-c", SERVER, "{host}", "{port}"]


def until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError("waited too long")
        time.sleep(0.01)


def alive(pid):
    try:
        with open("/proc/%d/stat" % pid) as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def some_start(argv=None, **more):
    start = {"name": "mobula/ab/llama-1", "fleet": "f", "model": "m", "revision": "r", "replica": "llama-1", "argv": argv or [SERVE]}
    start.update(bundle={"CPU": 1}, startTimeout=60, stopTimeout=20, attempts=2, backoff=0, maxBackoff=0, stable=60)
    start.update(more)
    return start


def start_of(**more):
    return json.dumps({"version": 1, "namespace": "n", "detached": True, "start": [some_start(**more)]})


# ---- a Ray that has what the launcher asks for


class FakeActor:
    def __init__(self, ray, options, args, cls):
        self.ray, self.options, self.args, self.cls, self.state = ray, options, args, cls, "ALIVE"
        ray.actors.append(self)
        self._actor_id = self

    def hex(self):
        return self

    @property
    def stop(self):
        return types.SimpleNamespace(remote=self.stop_remote)

    def stop_remote(self, timeout):
        self.state, self.stopped = "DEAD", timeout
        return object()


class FakeGroup:
    def __init__(self, bundles, more):
        self.bundles, self.more, self.bundle_count = bundles, more, len(bundles)


class FakeRay(types.ModuleType):
    def __init__(self):
        super().__init__("ray")
        self.actors, self.groups, self.kv, self.killed = [], {}, {}, []
        self.__version__ = "2.0-fake"
        self.util = types.ModuleType("ray.util")
        self.util.get_node_ip_address = lambda: "127.0.0.1"
        self.util.list_named_actors = lambda: [a.options["name"] for a in self.actors if a.state != "DEAD"]
        self.util.get_placement_group = self.get_group
        self.util.remove_placement_group = lambda g: self.groups.pop(g.more["name"])
        self.util.placement_group = self.make_group
        self.util.scheduling_strategies = types.ModuleType("ray.util.scheduling_strategies")
        self.util.scheduling_strategies.PlacementGroupSchedulingStrategy = lambda group, rank, capture: (group, rank)
        self.experimental = types.ModuleType("ray.experimental")
        internal_kv = types.ModuleType("ray.experimental.internal_kv")
        internal_kv._internal_kv_get = lambda key, namespace: self.kv.get(key)
        internal_kv._internal_kv_put = lambda key, value, overwrite, namespace: self.kv.update({key: value})
        internal_kv._internal_kv_del = lambda key, namespace: self.kv.pop(key, None)
        internal_kv._internal_kv_list = lambda prefix, namespace: [k for k in self.kv if k.startswith(prefix)]
        self.experimental.internal_kv = internal_kv
        self.by_value = []
        self.cloudpickle = types.SimpleNamespace(register_pickle_by_value=self.by_value.append)
        self._private = types.SimpleNamespace(state=types.SimpleNamespace(actors=self.table))
        self.modules = {m.__name__: m for m in (self, self.util, self.util.scheduling_strategies, self.experimental, internal_kv)}

    def get_runtime_context(self):
        return types.SimpleNamespace(gcs_address="127.0.0.1:%d" % os.getpid())

    def get_actor(self, name, namespace):
        for actor in self.actors:
            if actor.options["name"] == name and actor.state != "DEAD":
                return actor
        raise ValueError(name)

    def table(self, actor):
        return {"State": actor.state, "ActorClassName": actor.cls}

    def kill(self, actor, no_restart):
        self.killed.append(actor)
        actor.state = "DEAD"

    def wait(self, refs, num_returns, timeout):
        return refs, []

    def remote(self, cls):
        def options(**o):
            return types.SimpleNamespace(remote=lambda *args: FakeActor(self, o, args, cls.__name__))

        return types.SimpleNamespace(options=options)

    def get_group(self, name):
        if name not in self.groups:
            raise ValueError(name)
        return self.groups[name]

    def make_group(self, bundles, bundle_label_selector=None, **more):
        self.groups[more["name"]] = FakeGroup(bundles, dict(more, labels=bundle_label_selector))
        return self.groups[more["name"]]


class WithRay(unittest.TestCase):
    def setUp(self):
        self.ray = FakeRay()
        patch = mock.patch.dict(sys.modules, self.ray.modules)
        patch.start()
        self.addCleanup(patch.stop)


# ---- tests


class OrderTest(unittest.TestCase):
    def test_what_is_wrong_with_an_order_is_said(self):
        for text, want in [
            ("", "no MOBULA_ORDER"),
            ("{", "is no JSON"),
            ("[]", "no JSON object"),
            ('{"version":2,"namespace":"n"}', "version 2: this launcher takes 1"),
            ('{"version":1}', "names no namespace"),
            ('{"version":1,"namespace":"n","detached":true,"start":[{"name":"x"}]}', "without argv"),
            ('{"version":1,"namespace":"n","detached":true,"start":["x"]}', "without name"),
            ('{"version":1,"namespace":"n","detached":true,"stop":[{}]}', "without name"),
            ('{"version":1,"namespace":"n"}', "exactly one start"),
            (start_of(argv=[[]]), "without a command"),
        ]:
            with self.subTest(text), self.assertRaisesRegex(ValueError, want):
                mobula_launcher.read_order(text)

    def test_an_order_without_starts_or_stops_has_none(self):
        order = mobula_launcher.read_order('{"version":1,"namespace":"n","detached":true}')
        self.assertEqual(([], []), (order["start"], order["stop"]))

    def test_a_bad_order_ends_the_job_with_2(self):
        done = subprocess.run(
            [sys.executable, "-c", "import mobula_launcher; mobula_launcher.main()"],
            cwd=HERE, env=dict(os.environ, MOBULA_ORDER="{", PYTHONDONTWRITEBYTECODE="1"), capture_output=True, text=True
        )
        self.assertEqual(2, done.returncode, done.stderr)
        self.assertIn("MOBULA_ORDER is no JSON", done.stderr)
        self.assertNotIn("Traceback", done.stderr)

    def test_parts_are_named_as_in_go(self):
        self.assertEqual(["mobula/a/b", "mobula/a/b.1"], [mobula_engine.part_name("mobula/a/b", n) for n in (0, 1)])


class LauncherTest(WithRay):
    def setUp(self):
        super().setUp()
        self.launcher = mobula_launcher.Launcher("n", True)
        self.said = []
        patch = mock.patch.object(mobula_launcher, "say", self.said.append)
        patch.start()
        self.addCleanup(patch.stop)
        self.two = some_start(argv=[["a"], ["b"]], bundle={"CPU": 0.0, "GPU": 2.0, "memory": 5e8, "node:10.0.0.1": 0.001})

    def names(self):
        return sorted(a.options["name"] for a in self.ray.actors if a.state != "DEAD")

    def test_a_replica_is_started_once(self):
        self.assertTrue(self.launcher.attempt(self.launcher.start, self.two))
        self.assertTrue(self.launcher.attempt(self.launcher.start, self.two))
        self.assertEqual(["started mobula/ab/llama-1", "there already mobula/ab/llama-1"], self.said)
        self.assertEqual(["mobula/ab/llama-1", "mobula/ab/llama-1.1"], self.names())
        group = self.ray.groups["mobula/ab/llama-1"]
        self.assertEqual([{"GPU": 2.0, "memory": 5e8, "node:10.0.0.1": 0.001}] * 2, group.bundles)
        self.assertEqual(("STRICT_SPREAD", "detached"), (group.more["strategy"], group.more["lifetime"]))
        options = self.ray.actors[1].options
        want = {"num_cpus": 0, "num_gpus": 2.0, "memory": 500000000, "resources": {"node:10.0.0.1": 0.001}, "lifetime": "detached"}
        want.update(max_restarts=-1, namespace="n", scheduling_strategy=(group, 1))
        self.assertEqual(want, {k: options[k] for k in want})
        self.assertEqual({}, options["runtime_env"])

    def test_a_half_made_replica_is_completed(self):
        self.launcher.start(self.two)
        kept = self.ray.actors[0]
        self.ray.actors[1].state = "DEAD"
        self.assertEqual("started", self.launcher.start(self.two))
        self.assertEqual(["mobula/ab/llama-1", "mobula/ab/llama-1.1"], self.names())
        self.assertEqual("ALIVE", kept.state)

    def test_actors_whose_group_is_gone_are_made_anew(self):
        self.launcher.start(self.two)
        old = list(self.ray.actors)
        self.ray.groups.clear()
        self.assertEqual("started", self.launcher.start(self.two))
        self.assertEqual(["DEAD", "DEAD"], [a.state for a in old])
        self.assertEqual(2, len(self.names()))

    def test_an_actor_that_its_launcher_never_registered_is_made_anew(self):
        self.launcher.start(self.two)
        stuck = self.ray.actors[0]
        stuck.state = "DEPENDENCIES_UNREADY"
        with mock.patch.object(mobula_launcher, "until", lambda true, seconds: true()):
            self.assertEqual("started", self.launcher.start(self.two))
        self.assertEqual([stuck], self.ray.killed)

    def test_somebody_elses_actor_is_left_alone(self):
        other = FakeActor(self.ray, {"name": "mobula/ab/llama-1"}, (), "Other")
        self.assertFalse(self.launcher.attempt(self.launcher.start, self.two))
        self.assertFalse(self.launcher.attempt(self.launcher.stop, {"name": "mobula/ab/llama-1", "timeout": 1}))
        self.assertEqual(["name taken: mobula/ab/llama-1 is an actor of class Other in namespace n"] * 2, self.said)
        self.assertEqual(("ALIVE", {}, []), (other.state, self.ray.groups, self.ray.killed))

    def test_nothing_is_left_of_a_stopped_replica(self):
        self.launcher.start(self.two)
        other = FakeActor(self.ray, {"name": "mobula/ab/llama-12"}, (), "MobulaEngine")
        for name in ("mobula/ab/llama-1", "mobula/ab/llama-1.1"):
            mobula_engine.Record("n", name).write(starts=1)
        self.ray.actors[1].state = "PENDING_CREATION"
        self.assertTrue(self.launcher.attempt(self.launcher.stop, {"name": "mobula/ab/llama-1", "timeout": 7}))
        self.assertTrue(self.launcher.attempt(self.launcher.stop, {"name": "mobula/ab/llama-1", "timeout": 7}))
        self.assertEqual(["stopped mobula/ab/llama-1", "gone already mobula/ab/llama-1"], self.said)
        self.assertEqual((["mobula/ab/llama-12"], {}, {}), (self.names(), self.ray.groups, self.ray.kv))
        self.assertEqual(7, self.ray.actors[0].stopped)
        self.assertEqual("ALIVE", other.state)

    def test_a_ray_that_knows_no_labels_is_told_of(self):
        self.ray.util.placement_group = lambda bundles, strategy, name, lifetime: None
        self.assertFalse(self.launcher.attempt(self.launcher.start, some_start(labels={"zone": "b"})))
        self.assertIn("can't select nodes by label", self.said[0])

    def test_a_runtime_environment_is_as_it_was_given(self):
        # An image's takes nothing beside it, so the actor brings its module itself.
        for env in ({"image_uri": "x", "env_vars": {"A": "1"}}, {"container": {"image": "x"}}, {"pip": ["x"], "py_modules": ["s3://a"]}):
            with self.subTest(env):
                self.launcher.start(some_start(name="mobula/ab/" + sorted(env)[-1], runtimeEnv=env))
                self.assertEqual(env, self.ray.actors[-1].options["runtime_env"])
        self.assertEqual({mobula_engine}, set(self.ray.by_value))

    def test_actors_take_no_runtime_environment_from_the_job(self):
        job = {"runtime_env": {"py_modules": ["gcs://ours.zip"], "env_vars": {"MOBULA_ORDER": "{}"}}, "metadata": {"job_submission_id": "x"}}
        want = {"runtime_env": {}, "metadata": {"job_submission_id": "x"}}
        self.assertEqual(want, json.loads(mobula_launcher.own_config(json.dumps(job))))
        self.assertEqual({"runtime_env": {}}, json.loads(mobula_launcher.own_config("{}")))


class ByValueTest(unittest.TestCase):
    def test_the_actors_module_needs_none_of_ours(self):
        with open(mobula_engine.__file__, encoding="utf-8") as f:
            imports = re.findall(r"(?m)^ *(?:import|from) +(\w+)", f.read())
        self.assertIn("subprocess", imports)
        self.assertEqual([], [name for name in imports if name.startswith("mobula")])

    def test_the_actor_has_the_guards_program(self):
        with open(mobula_guard.__file__, "rb") as f:
            self.assertEqual(f.read(), mobula_engine.GUARD)


class CountingTest(unittest.TestCase):
    def test_failures_in_a_row_are_counted(self):
        for name, record, want in [
            ("the first start", {}, (0, 100)),
            ("noted by the run itself", {"phase": "ended", "failed": 2, "at": 90}, (2, 90)),
            ("killed while it started", {"phase": "starting", "failed": 1, "at": 90}, (2, 100)),
            ("killed after a short run", {"phase": "ready", "failed": 1, "at": 70}, (2, 100)),
            ("killed after a long run", {"phase": "ready", "failed": 3, "at": 10}, (0, 100)),
        ]:
            with self.subTest(name):
                self.assertEqual(want, mobula_engine.account(record, 100, 60))

    def test_backoff_doubles_up_to_its_bound(self):
        start = {"backoff": 2, "maxBackoff": 10}
        self.assertEqual([0, 2, 4, 8, 10, 10], [mobula_engine.backoff(n, start) for n in (0, 1, 2, 3, 4, 5000)])


class PeerTest(unittest.TestCase):
    def look(self, rank, run, *records):
        peer, why = mobula_engine.Peer(rank), None
        for record in records:
            why = why or peer.look(record, run)
        return why

    def test_a_run_ends_with_that_of_a_peer(self):
        joined = {"run": "r", "process": "p", "beat": 1}
        for name, rank, records, want in [
            ("not there yet", 1, [{}, {"run": "older", "process": "q", "beat": 3}], None),
            ("lives", 1, [joined, dict(joined, beat=2), dict(joined, beat=3)], None),
            ("started anew", 1, [joined, dict(joined, process="q", run="")], "part 1 has ended"),
            ("came and went", 1, [{"run": "", "left": "r", "process": "q"}], "part 1 has ended"),
            ("ended", 1, [joined, dict(joined, phase="ended")], "part 1 has ended"),
            ("removed", 1, [joined, {}], "part 1 has ended"),
            ("silent", 1, [joined] * (mobula_engine.SILENT + 1), "part 1 is silent"),
            ("part 0 left the run at once", 0, [{"run": "s", "process": "q"}], "part 0 has ended"),
            ("gave up", 1, [{"gave_up": True, "reason": "no memory"}], "part 1: no memory"),
        ]:
            with self.subTest(name):
                why = self.look(rank, "r", *records)
                self.assertEqual(want, None if why is None else str(why))


class EnvironmentTest(unittest.TestCase):
    def test_the_engine_gets_what_is_its_own(self):
        environ = {
            "PATH": "/bin", "PYTHONPATH": "/theirs", "RAY_JOB_ID": "1", "OMP_NUM_THREADS": "1", "HOME": "/h",
            "CUDA_VISIBLE_DEVICES": "3", "PYTHONBREAKPOINT": "ray.x",
        }
        start = {"bundle": {"GPU": 1}, "env": {"VLLM_HOST_IP": "{host}", "AT": "at {host}"}}
        env = mobula_engine.engine_env(environ, {}, start, {"{host}": "10.0.0.1"}, "10.0.0.9:6379")
        want = {
            "PATH": "/bin:" + os.path.dirname(sys.executable), "PYTHONPATH": "/theirs", "HOME": "/h", "CUDA_VISIBLE_DEVICES": "3",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "VLLM_HOST_IP": "10.0.0.1", "AT": "at {host}", "RAY_ADDRESS": "10.0.0.9:6379",
        }
        self.assertEqual(want, env)

    def test_an_engine_without_gpus_sees_none(self):
        env = mobula_engine.engine_env({"CUDA_VISIBLE_DEVICES": "0,1"}, {}, {"bundle": {"CPU": 1, "GPU": 0}}, {}, "a")
        self.assertEqual("", env["CUDA_VISIBLE_DEVICES"])

    def test_threads_that_the_user_set_stay(self):
        env = mobula_engine.engine_env({"OMP_NUM_THREADS": "8"}, {"OMP_NUM_THREADS": "8"}, {"bundle": {}}, {}, "a")
        self.assertEqual("8", env["OMP_NUM_THREADS"])


class PortsTest(unittest.TestCase):
    def setUp(self):
        (self.low, _), held = mobula_engine.free_ports(2, 0, 0)
        for lock in held:
            lock.close()

    def test_no_port_is_given_twice_while_it_is_held(self):
        high = min(self.low + 40, 65535)
        seen, held = [], []
        for _ in range(5):
            ports, locks = mobula_engine.free_ports(2, self.low, high)
            seen += ports
            held += locks
        self.addCleanup(lambda: [lock.close() for lock in held])
        self.assertEqual(len(seen), len(set(seen)))
        self.assertTrue(all(self.low <= p <= high for p in seen))

    def test_a_port_that_something_listens_on_is_passed_over(self):
        for host in ("127.0.0.1", "0.0.0.0"):
            with self.subTest(host), mobula_engine.socket.socket() as s:
                s.bind((host, 0))
                s.listen()
                port = s.getsockname()[1]
                with self.assertRaisesRegex(mobula_engine.Failed, "no free port of %d to %d" % (port, port)):
                    mobula_engine.free_ports(1, port, port)


class TailTest(unittest.TestCase):
    def test_the_last_lines_are_kept(self):
        for name, chunks, want in [
            ("nothing", [], []),
            ("in pieces", [b"a", b"b\nc", b"\n\nd"], ["ab", "c", "d"]),
            ("a progress bar", [b"10%\r50%\r100%\r\nend"], ["100%", "end"]),
            ("no text", [b"\xff\xfe\n"], ["\ufffd\ufffd"]),
            ("many", [b"%d\n" % n for n in range(100)], [str(n) for n in range(60, 100)]),
        ]:
            with self.subTest(name):
                tail = mobula_engine.Tail()
                for chunk in chunks:
                    tail.add(chunk)
                self.assertEqual(want, tail.lines())

    def test_it_is_bounded(self):
        tail = mobula_engine.Tail()
        for _ in range(200):
            tail.add(b"x" * 65536)
            tail.add(b"\n" + b"y" * 3000 + b"\n")
        self.assertLessEqual(len("\n".join(tail.lines())), mobula_engine.TAIL_BYTES)
        self.assertLess(sum(map(len, tail.done)) + len(tail.open), 50000)


class GuardTest(unittest.TestCase):
    count = 0

    def engine(self, script, grace=30, only=None, argv=None):
        GuardTest.count += 1
        self.reason = None
        only = only or "test-%d-%d" % (os.getpid(), GuardTest.count)
        engine = mobula_engine.Engine(argv or ["/bin/sh", "-c", script], dict(os.environ), grace, only, self.ended, self.log)
        self.addCleanup(engine.stop, 0)
        return engine

    def setUp(self):
        self.log = -1  # nowhere

    def ended(self, reason):
        self.reason = reason

    def pid(self, engine, n=1):
        """Reads the pid that the engine printed in its n-th line."""
        until(lambda: len(engine.tail.lines()) >= n)
        return int(engine.tail.lines()[n - 1])

    def test_the_end_of_an_engine_is_told_with_its_output(self):
        for script, want in [
            ("echo one; echo two >&2; exit 3", "the engine ended with exit status 3"),
            ("echo one; echo two; kill -9 $$", "the engine was killed by signal 9"),
            ("echo one; echo two", "the engine ended with exit status 0"),
        ]:
            with self.subTest(script):
                engine = self.engine(script)
                until(lambda: self.reason)
                self.assertEqual((want, ["one", "two"]), (self.reason, engine.tail.lines()))

    def test_a_command_that_can_not_run_is_told(self):
        self.engine("", argv=["/nonexistent/vllm"])
        until(lambda: self.reason)
        self.assertEqual("/nonexistent/vllm can't be started: No such file or directory", self.reason)

    def test_an_engine_may_stop_by_itself(self):
        engine = self.engine("trap 'echo bye; exit 0' TERM; echo $$; while :; do sleep 0.05; done")
        self.pid(engine)
        engine.stop(60)
        self.assertEqual(("the engine ended with exit status 0", "bye"), (self.reason, engine.tail.lines()[-1]))

    def test_an_engine_that_does_not_stop_is_killed(self):
        engine = self.engine("trap '' TERM; echo $$; while :; do sleep 0.05; done")
        pid = self.pid(engine)
        engine.stop(0.3)
        self.assertEqual("the engine was killed by signal 9", self.reason)
        self.assertFalse(alive(pid))

    def test_nothing_that_an_engine_started_is_left(self):
        engine = self.engine("trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$; sleep 1000' & sleep 0.3; echo $$; exit 1")
        pid = self.pid(engine)
        until(lambda: self.reason)
        self.assertFalse(alive(pid))

    def test_an_engine_ends_with_its_actor(self):
        for name, sig in [("killed", signal.SIGKILL), ("ended", signal.SIGTERM)]:
            with self.subTest(name):
                actor = subprocess.Popen(
                    [
                        sys.executable, "-B", "-c",
                        "import mobula_engine, os, time\n"
                        "script = \"setsid sh -c 'echo $$; sleep 1000' & trap '' TERM; echo $$; while :; do sleep 0.05; done\"\n"
                        "mobula_engine.Engine(['/bin/sh', '-c', script], dict(os.environ), 0.5, 'actor-%d' % os.getpid(), print)\n"
                        "time.sleep(1000)",
                    ],
                    cwd=HERE, stdout=subprocess.PIPE, text=True
                )
                pids = [int(actor.stdout.readline()) for _ in range(2)]
                self.assertTrue(all(map(alive, pids)))
                actor.send_signal(sig)
                actor.wait()
                actor.stdout.close()
                until(lambda: not any(map(alive, pids)))

    def test_an_engine_whose_actor_is_lost_is_not_asked_to_stop(self):
        # It would answer what it has begun as if that were all.
        with tempfile.TemporaryDirectory() as folder:
            actor = subprocess.Popen(
                [
                    sys.executable, "-B", "-c",
                    "import mobula_engine, os, time\n"
                    "script = \"trap 'touch asked' TERM; echo $$; while :; do sleep 0.05; done\"\n"
                    "mobula_engine.Engine(['/bin/sh', '-c', 'cd %s; ' + script], dict(os.environ), 30, 'lost-%%d' %% os.getpid(), print)\n"
                    "time.sleep(1000)" % folder,
                ],
                cwd=HERE, stdout=subprocess.PIPE, text=True
            )
            pid = int(actor.stdout.readline())
            actor.kill()
            actor.wait()
            actor.stdout.close()
            until(lambda: not alive(pid))
            self.assertEqual([], os.listdir(folder))

    def test_an_engine_ends_with_its_guard(self):
        engine = self.engine("echo $PPID; echo $$; while :; do sleep 0.05; done")
        guard, pid = self.pid(engine), self.pid(engine, 2)
        os.kill(guard, signal.SIGKILL)
        until(lambda: self.reason)
        self.assertEqual("the engine was lost: its guard was killed", self.reason)
        until(lambda: not alive(pid))

    def test_a_second_engine_waits_for_the_first(self):
        first = self.engine("trap '' TERM; echo $$; while :; do sleep 0.05; done", grace=0.5, only="one-%d" % os.getpid())
        pid = self.pid(first)
        second = self.engine("kill -0 %d 2>/dev/null && echo both || echo alone" % pid, only="one-%d" % os.getpid())
        time.sleep(0.3)
        self.assertEqual([], second.tail.lines())
        first.stop(0)
        until(lambda: second.ended.is_set())
        self.assertEqual(["alone"], second.tail.lines())

    def test_an_engine_never_waits_for_its_log(self):
        reader, self.log = os.pipe()
        engine = self.engine("echo $$; head -c 8000000 /dev/zero; exec sleep 1000")
        pid = self.pid(engine)

        def wrote():
            with open("/proc/%d/cmdline" % pid) as f:
                return f.read().startswith("sleep")

        until(wrote)
        threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(reader, 1 << 20), b"")], daemon=True).start()


class PartTest(WithRay):
    def setUp(self):
        super().setUp()
        self.exits = []
        for patch in (mock.patch.object(mobula_engine.os, "_exit", self.exit), mock.patch.object(mobula_engine, "print", lambda *a, **k: None, create=True)):
            patch.start()
            self.addCleanup(patch.stop)
        quiet = functools.partial(mobula_engine.Engine, log=-1)
        patch = mock.patch.object(mobula_engine, "Engine", quiet)
        patch.start()
        self.addCleanup(patch.stop)

    def exit(self, status):
        self.exits.append(status)
        raise SystemExit(status)

    def part(self, start, rank=0):
        part = mobula_engine.Part(start, rank, "n")
        self.addCleanup(lambda: part.stop(0) if part.engine else None)
        return part

    def record(self, name="mobula/ab/llama-1"):
        return mobula_engine.Record("n", name).read()

    def test_an_actor_says_where_its_engine_serves(self):
        actor = mobula_engine.MobulaEngine.__new__(mobula_engine.MobulaEngine)
        actor.part = self.part(some_start())
        self.assertNotIn("mobula ", repr(actor))
        actor.part.serve()
        said = json.loads(repr(actor)[len("mobula "):])
        self.assertTrue(mobula_engine.healthy("127.0.0.1", actor.part.port))
        self.assertAlmostEqual(time.time(), said.pop("readyAt"), delta=600)
        want = {"v": 1, "url": "http://127.0.0.1:%d" % actor.part.port, "fleet": "f", "model": "m", "revision": "r", "replica": "llama-1"}
        self.assertEqual(dict(want, rank=0, gen=0, pid=os.getpid(), devices=""), said)
        self.assertEqual(("ready", 1, True), tuple(self.record()[k] for k in ("phase", "starts", "ever")))

    def test_an_engine_that_ends_takes_its_actor_with_it(self):
        part = self.part(some_start())
        part.serve()
        mobula_guard.signal_process(mobula_guard_engine(part), signal.SIGKILL)
        until(lambda: self.exits)
        record = self.record()
        self.assertEqual(([1], "ended", 1), (self.exits, record["phase"], record["failed"]))
        self.assertEqual("the engine was killed by signal 9\nserving", record["reason"])

    def test_a_start_that_fails_is_tried_again_and_then_given_up(self):
        start = some_start(argv=[["/bin/sh", "-c", "echo CUDA out of memory; exit 3"]])
        with self.assertRaises(SystemExit):
            self.part(start).serve()
        with self.assertRaises(RuntimeError) as raised:
            self.part(start).serve()
        self.assertEqual("mobula: engine failed: the engine ended with exit status 3\nCUDA out of memory", str(raised.exception))
        mobula_engine.Record("n", start["name"]).renew()
        with self.assertRaises(SystemExit):
            self.part(start).serve()
        self.assertEqual(3, self.record()["starts"])

    def test_an_engine_that_never_answers_fails(self):
        with self.assertRaisesRegex(RuntimeError, "did not answer /health within 0.3 s"):
            self.part(some_start(argv=[["/bin/sleep", "1000"]], startTimeout=0.3, attempts=1)).serve()

    def test_a_command_that_is_missing_is_given_up_at_once(self):
        with self.assertRaisesRegex(RuntimeError, "engine failed: no command vllm-missing on node 127.0.0.1"):
            self.part(some_start(argv=[["vllm-missing"]], attempts=9)).serve()

    def test_one_that_was_ready_is_never_given_up(self):
        mobula_engine.Record("n", "mobula/ab/llama-1").write(starts=5, failed=4, ever=True, phase="ended", at=time.time())
        with self.assertRaises(SystemExit):
            self.part(some_start(argv=[["/bin/false"]])).serve()
        self.assertEqual(5, self.record()["failed"])

    def test_a_node_that_kills_every_start_is_given_up(self):
        mobula_engine.Record("n", "mobula/ab/llama-1").write(starts=2, failed=1, phase="starting", at=time.time())
        with self.assertRaisesRegex(RuntimeError, "killed while the engine started, 2 times in a row"):
            self.part(some_start()).serve()

    def test_a_part_says_which_run_it_has_left(self):
        for before, want in [({"run": "r"}, "r"), ({"run": "", "left": "r"}, "r"), ({"run": "s", "left": "r"}, "s"), ({}, "")]:
            with self.subTest(before):
                self.ray.kv.clear()
                mobula_engine.Record("n", "mobula/ab/llama-1.1").write(**before)
                part = self.part(some_start(argv=[SERVE, SERVE]), 1)
                part.begin()
                part.lose(mobula_engine.Failed("over"))
                record = self.record("mobula/ab/llama-1.1")
                self.assertEqual(("", want, want), (record["run"], record["left"], part.last_run))

    def test_a_store_that_fails_is_a_failed_start(self):
        with mock.patch.object(mobula_engine.Record, "read", side_effect=OSError("gcs is away")), self.assertRaises(SystemExit):
            self.part(some_start()).serve()

    def test_the_parts_of_an_engine_meet_and_end_together(self):
        start = some_start(argv=[SERVE + ["{master}", "{masterPort}"], ["/bin/sh", "-c", "echo $0 $1; exec sleep 1000", "{master}", "{masterPort}"]])
        parts = [self.part(start, rank) for rank in range(2)]
        threads = [threading.Thread(target=part.serve) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(["", "127.0.0.1"], [parts[1].publication["url"], parts[1].engine.tail.lines()[0].split()[0]])
        self.assertEqual(str(self.record()["masterPort"]), parts[1].engine.tail.lines()[0].split()[1])
        parts[1].engine.stop(0)
        until(lambda: len(self.exits) == 2)
        self.assertEqual("part 1 has ended", self.record()["reason"])
        self.assertEqual(0, self.record()["failed"])


def mobula_guard_engine(part):
    """Gives the pid of a part's engine: the process that has its port as its last argument."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/cmdline" % entry) as f:
                argv = f.read().split("\0")
        except OSError:
            continue
        if argv[-2:-1] == [str(part.port)] and "mobula_guard" not in " ".join(argv):
            return int(entry)
    raise AssertionError("no engine on port %d" % part.port)


if __name__ == "__main__":
    unittest.main()
