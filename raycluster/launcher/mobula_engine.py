"""The actor of an engine on a Ray cluster: see mobula_launcher.

Ray takes it by value to where it runs: there, maybe in an image of the user's, are none of our modules. All that it needs
is here or in Python, and the guard goes along as text.
"""

import collections
import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid

VERSION = 1
FAILURE_MARK = "mobula: engine failed: "
KV_NAMESPACE = b"mobula"
TAIL_LINES, TAIL_BYTES = 40, 4000
SILENT = 15  # looks, one a second, at a part's unchanged heartbeat: then it is gone
GUARD = pathlib.Path(__file__).with_name("mobula_guard.py").read_bytes()


class MobulaEngine:
    """Is there as long as its engine. It is made when the engine serves: only then does Ray show what __repr__ gives."""

    def __init__(self, start, rank, namespace):
        self.part = Part(start, rank, namespace)
        self.part.serve()

    def stop(self, timeout):
        """Stops the engine in order, and then the actor for good: until then its GPUs are not free."""
        import ray

        self.part.stop(timeout)
        ray.actor.exit_actor()

    def __repr__(self):
        if not self.part.publication:
            return object.__repr__(self)
        return "mobula " + json.dumps(self.part.publication, separators=(",", ":"))


class Failed(Exception):
    """A start that failed. With final another attempt is of no use; with blame false it was another part that failed."""

    def __init__(self, reason, final=False, blame=True):
        super().__init__(reason)
        self.final, self.blame = final, blame


class Part:
    """Is one process of the actor of a replica's part: one run of its engine."""

    def __init__(self, start, rank, namespace):
        import ray

        context = ray.get_runtime_context()
        self.start, self.rank, self.parts, self.namespace = start, rank, len(start["argv"]), namespace
        self.record = Record(namespace, part_name(start["name"], rank))
        self.host = ray.util.get_node_ip_address()
        self.gcs = context.gcs_address
        self.process = uuid.uuid4().hex  # a part that has another one started anew
        self.run = self.process if rank == 0 else ""  # the run of part 0 that this one is part of
        self.lock, self.over, self.why = threading.Lock(), threading.Event(), None
        self.peers = [Peer(n) for n in (range(1, self.parts) if rank == 0 else [0])]
        self.generation, self.failed, self.ever, self.last_run, self.port, self.held = 0, 0, False, "", 0, []
        self.engine, self.stopping, self.ready_at, self.publication = None, False, 0.0, {}

    def serve(self):
        """Returns when the engine serves. When it does not the process ends, for Ray to start it again, or this raises."""
        try:
            self.begin()
            self.launch()
            self.wait_ready()
            self.ready_at = time.time()
            self.record.write(phase="ready", at=self.ready_at, ever=True)
            why = None
        except Failed as err:
            why = err
        except Exception as err:  # of Ray or of the node: another start may fare better
            why = Failed("%s: %s" % (type(err).__name__, err))
        if why is not None:
            self.ready_at = 0.0
            self.end(why)
        self.publication = self.publish()
        threading.Thread(target=self.watch_engine, daemon=True).start()

    def begin(self):
        """Counts this start and waits as long as those before it demand."""
        old, now = self.record.read(), time.time()
        self.generation, self.ever = old.get("starts", 0), old.get("ever", False)
        self.last_run = old.get("run") or old.get("left", "")
        self.failed, at = account(old, now, self.start["stable"])
        self.record.write(
            starts=self.generation + 1, failed=self.failed, phase="starting", at=now, process=self.process, beat=0, gave_up=False,
            run="", left=self.last_run
        )
        if self.parts > 1:
            threading.Thread(target=self.watch_parts, daemon=True).start()
        if self.failed >= self.start["attempts"] and not self.ever:
            raise Failed("its process was killed while the engine started, %d times in a row" % self.failed, final=True)
        self.wait(backoff(self.failed, self.start) - max(now - at, 0))

    def launch(self):
        """Starts the engine."""
        ports, self.held = free_ports(2, self.start.get("portMin", 0), self.start.get("portMax", 0))
        self.port, master = ports[0], {"host": self.host, "masterPort": ports[1]}
        if self.rank == 0:
            self.record.write(run=self.run, **master)
        else:
            master = self.wait_master()
        values = {"{host}": self.host, "{port}": str(self.port), "{master}": master["host"], "{masterPort}": str(master["masterPort"])}
        argv = [values.get(arg, arg) for arg in self.start["argv"][self.rank]]
        env = engine_env(dict(os.environ), read_environ("/proc/self/environ"), self.start, values, self.gcs)
        if shutil.which(argv[0], path=env.get("PATH")) is None:
            raise Failed(
                "no command %s on node %s: install it there or set engine.command to where it is (PATH: %s)"
                % (argv[0], self.host, env.get("PATH")), final=True
            )
        only = hashlib.sha256(("%s %s" % (self.gcs, self.record.key)).encode()).hexdigest()
        print("mobula: start %s, port %d, generation %d" % (argv[0], self.port, self.generation), flush=True)
        self.engine = Engine(argv, env, self.start["stopTimeout"], only, lambda reason: self.lose(Failed(reason)))

    def wait_ready(self):
        """Waits until the engine serves: part 0 answers its probe and the others run, which follow part 0."""
        began, master, up = time.monotonic(), Record(self.namespace, self.start["name"]), False
        while time.monotonic() - began < self.start["startTimeout"]:
            lived = time.monotonic() - began
            if self.rank == 0 and all(peer.up for peer in self.peers) and healthy(self.host, self.port):
                return
            if self.rank > 0 and not up and lived > 1:
                self.record.write(up=self.run)
                up = True
            if up and same_run(master, self.run).get("phase") == "ready":
                return
            self.wait(0.1 if lived < 10 else 0.25)
        self.lose(Failed("the engine did not answer /health within %g s" % self.start["startTimeout"]))
        self.wait(0)

    def wait(self, seconds):
        """Waits, unless the run ends before: then it raises why."""
        if self.over.wait(max(seconds, 0)):
            raise self.why

    def wait_master(self):
        """Waits for a run of part 0 that this part was not in yet."""
        master, deadline = Record(self.namespace, self.start["name"]), time.monotonic() + self.start["startTimeout"]
        while time.monotonic() < deadline:
            told = master.read()
            if told.get("run") and told["run"] != self.last_run:
                self.run = told["run"]
                self.record.write(run=self.run)
                return told
            self.wait(0.2)
        raise Failed("part 0 did not start within %g s" % self.start["startTimeout"])

    def lose(self, why):
        """Ends the run: the first reason counts."""
        with self.lock:
            if self.why is None:
                self.why = why
        self.over.set()

    def end(self, why):
        """Ends this process after a failure: for Ray to start it again, or, when that is of no use, by raising."""
        if self.engine is not None:
            self.engine.stop(self.start["stopTimeout"])
        reason = str(why)
        if self.engine is not None and why.blame:
            reason = "\n".join([reason] + self.engine.tail.lines())
        print("mobula: " + reason.split("\n")[0], flush=True)
        if self.ready_at:
            stable = time.time() - self.ready_at >= self.start["stable"]
            self.failed = 0 if stable else self.failed + int(why.blame)
        else:
            self.failed += int(why.blame)
        gave_up = not self.ready_at and (why.final or (self.failed >= self.start["attempts"] and not self.ever))
        self.record.note(phase="ended", at=time.time(), failed=self.failed, reason=reason, gave_up=gave_up)
        if gave_up:
            raise RuntimeError(FAILURE_MARK + reason)
        os._exit(1)

    def watch_engine(self):
        self.over.wait()
        if not self.stopping:
            self.end(self.why)

    def watch_parts(self):
        """Shows the others that this part lives, and ends its run with that of any other."""
        records = [(peer, Record(self.namespace, part_name(self.start["name"], peer.rank))) for peer in self.peers]
        beat = 0
        while not self.over.wait(1):
            beat += 1
            try:
                self.record.write(beat=beat)
                for peer, record in records:
                    why = peer.look(record.read(), self.run)
                    if why is not None:
                        self.lose(why)
            except Exception as err:  # whatever Ray raises while GCS is away: nothing follows from that
                print("mobula: can't look at the other parts: %s" % err, flush=True)

    def stop(self, timeout):
        self.stopping = True
        self.over.set()
        self.engine.stop(timeout)

    def publish(self):
        start = self.start
        at = self.host if ":" not in self.host else "[%s]" % self.host
        return {
            "v": VERSION,
            "url": "http://%s:%d" % (at, self.port) if self.rank == 0 else "",
            "fleet": start["fleet"],
            "model": start["model"],
            "revision": start["revision"],
            "replica": start["replica"],
            "rank": self.rank,
            "gen": self.generation,
            "pid": os.getpid(),
            "devices": os.environ.get("CUDA_VISIBLE_DEVICES", "") if start["bundle"].get("GPU") else "",
            "readyAt": round(self.ready_at, 3),
        }


def same_run(record, run):
    told = record.read()
    return told if told.get("run") == run else {}


class Peer:
    """Is what one part sees of another."""

    def __init__(self, rank):
        self.rank, self.process, self.beat, self.silent, self.up = rank, None, None, 0, False

    def look(self, record, run):
        """Takes the peer's record; gives why the run is over, if it is. A part that was never in the run can't end it."""
        if record.get("gave_up"):
            return Failed("part %d: %s" % (self.rank, record.get("reason", "gave up")), final=True, blame=False)
        if not run:
            return None
        if self.process is None:
            if self.rank > 0 and record.get("left") == run:
                return Failed("part %d has ended" % self.rank, blame=False)  # it came and went between two looks
            if self.rank > 0 and record.get("run") != run:
                return None  # not yet in it
            self.process = record.get("process")
        self.up = record.get("up") == run
        self.silent = self.silent + 1 if record.get("beat") == self.beat else 0
        self.beat = record.get("beat")
        if record.get("process") != self.process or record.get("run") != run or record.get("phase") == "ended":
            return Failed("part %d has ended" % self.rank, blame=False)
        if self.silent >= SILENT:
            return Failed("part %d is silent" % self.rank, blame=False)
        return None


def engine_env(environ, given, start, values, gcs):
    """Gives the engine's environment: that of the actor without what Ray has put there."""
    env = dict(environ)
    for name in ("RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_JOB_CONFIG_JSON_ENV_VAR", "PYTHONBREAKPOINT"):
        env.pop(name, None)
    if "OMP_NUM_THREADS" not in given:
        env.pop("OMP_NUM_THREADS", None)  # Ray's: as many as the actor has CPUs
    env["PATH"] = os.pathsep.join(filter(None, [env.get("PATH", os.defpath), os.path.dirname(sys.executable)]))
    env.setdefault("RAY_ADDRESS", gcs)
    env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if not start["bundle"].get("GPU"):
        env["CUDA_VISIBLE_DEVICES"] = ""
    env.update({name: values.get(value, value) for name, value in (start.get("env") or {}).items()})
    return env


def read_environ(path):
    """Gives the environment with which a process was started."""
    try:
        with open(path, "rb") as f:
            pairs = [p.partition("=") for p in os.fsdecode(f.read()).split("\0")]
    except OSError:
        return {}
    return {name: value for name, _, value in pairs if name}


def free_ports(n, low, high):
    """Gives n ports on which nothing listens, of low to high or of any, and what keeps other actors from taking them."""
    tries = [0] * n * 10
    if low:
        first = random.randrange(high - low + 1)
        tries = [low + (first + i) % (high - low + 1) for i in range(high - low + 1)]
    ports, held = [], []
    for port in tries:
        if len(ports) == n:
            break
        with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
            lock = socket.socket(socket.AF_UNIX)
            try:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if probe.family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                probe.bind(("", port))
                port = probe.getsockname()[1]
                lock.bind("\0mobula/port/%d" % port)
            except OSError:
                lock.close()
                continue
        ports.append(port)
        held.append(lock)
    if len(ports) < n:
        raise Failed("no free port of %d to %d on this node: make platform.ray.ports wider" % (low, high))
    return ports, held


def healthy(host, port):
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Tail:
    """Keeps the last lines of an output."""

    def __init__(self):
        self.done, self.open = collections.deque(maxlen=TAIL_LINES), b""

    def add(self, chunk):
        *done, self.open = (self.open + chunk).split(b"\n")
        self.done.extend(line[-1000:] for line in done)
        self.open = self.open[-1000:]

    def lines(self):
        """Gives at most TAIL_BYTES of them. A line that was written over, as a progress bar is, counts as it was last."""
        kept, size = [], 0
        for line in [self.open] + list(reversed(self.done)):
            text = line.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode("utf-8", "replace").rstrip()
            size += len(text.encode()) + 1
            if size > TAIL_BYTES:
                break
            if text:
                kept.insert(0, text)
        return kept


class Engine:
    """Is a running engine, seen from its actor: a guard has it and tells what it prints and how it ended."""

    def __init__(self, argv, env, grace, only, on_end, log=1):  # the actor's own output, which Ray keeps
        self.tail, self.ended, self.on_end, self.lock, self.log = Tail(), threading.Event(), on_end, threading.Lock(), log
        control, self.control = os.pipe()
        self.output, output = os.pipe()
        self.report, report = os.pipe()
        fds = (control, output, report)
        command = [sys.executable, "-I", "-S", "-", "mobula_guard"] + [str(fd) for fd in fds] + [str(grace), only] + argv
        try:
            guard = subprocess.Popen(
                command, env=env, pass_fds=fds, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=output, start_new_session=True
            )
            guard.communicate(GUARD)  # and waits: what goes on is its child
        finally:
            for fd in fds:
                os.close(fd)
        threading.Thread(target=self.follow, daemon=True).start()

    def follow(self):
        """Takes what the engine prints until it and its guard are gone."""
        while True:
            chunk = os.read(self.output, 65536)
            if not chunk:
                break
            self.tail.add(chunk)
            try:
                os.write(self.log, chunk)
            except OSError:
                pass  # a log that can't be written is no reason to end
        reason = ended_reason(os.read(self.report, 65536))
        os.close(self.output)
        os.close(self.report)
        self.ended.set()
        self.on_end(reason)

    def stop(self, grace):
        """Stops the engine, by force after so many seconds, and waits until nothing of it is left."""
        with self.lock:
            control, self.control = self.control, None
        if control is not None:
            try:
                os.write(control, b"%f\n" % grace)
            except OSError:
                pass  # the guard has gone
            os.close(control)
        self.ended.wait(grace + 15)


def ended_reason(report):
    """Puts a guard's report into words."""
    told = {}
    for line in report.splitlines():
        told.update(json.loads(line))
    if "error" in told:
        return told["error"]
    if told.get("status") is None:
        if "pid" in told:
            with contextlib.suppress(OSError):  # nobody is left
                os.killpg(told["pid"], signal.SIGKILL)
        return "the engine was lost: its guard was killed"
    if os.WIFSIGNALED(told["status"]):
        return "the engine was killed by signal %d" % os.WTERMSIG(told["status"])
    return "the engine ended with exit status %d" % os.WEXITSTATUS(told["status"])


def part_name(name, rank):
    """Names the actor of one part of a replica, as PartName in order.go."""
    return name if rank == 0 else "%s.%d" % (name, rank)


class Record:
    """Is one JSON object in Ray's internal key-value store: "starts" so far, "failed" ones in a row, whether it "ever" got
    ready, the "phase" of the last run, since when ("at", Unix seconds) and the "reason" of its end. Parts of one engine
    find each other by it too. Only the part writes it, and the launcher while there is no such part."""

    def __init__(self, namespace, name):
        self.key = ("%s/%s" % (namespace, name)).encode()
        self.lock = threading.Lock()

    @staticmethod
    def names(namespace, name):
        """Names the parts of a replica that have a record."""
        from ray.experimental import internal_kv

        prefix = ("%s/" % namespace).encode()
        keys = internal_kv._internal_kv_list(prefix + name.encode() + b".", namespace=KV_NAMESPACE)
        return [name] + [key[len(prefix):].decode() for key in keys]

    def read(self):
        from ray.experimental import internal_kv

        text = internal_kv._internal_kv_get(self.key, namespace=KV_NAMESPACE)
        return json.loads(text) if text else {}

    def write(self, **fields):
        from ray.experimental import internal_kv

        with self.lock:
            text = json.dumps(dict(self.read(), **fields)).encode()
            internal_kv._internal_kv_put(self.key, text, overwrite=True, namespace=KV_NAMESPACE)

    def note(self, **fields):
        """Writes if that is done at once: a cluster whose GCS is away keeps nobody from ending."""

        def write():
            try:
                self.write(**fields)
            except Exception as err:  # whatever Ray raises
                print("mobula: can't note %s: %s" % (fields, err), flush=True)

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        thread.join(2)

    def renew(self):
        """Lets attempts count from zero; starts go on counting."""
        if self.read():
            self.write(failed=0, ever=False, phase="", reason="", gave_up=False, process="")  # its last run stays: it is over

    def forget(self):
        from ray.experimental import internal_kv

        internal_kv._internal_kv_del(self.key, namespace=KV_NAMESPACE)


def account(record, now, stable):
    """Gives how many runs in a row have failed, with the one that the record tells of, and since when none runs."""
    failed, at, phase = record.get("failed", 0), record.get("at", now), record.get("phase")
    if phase == "starting":  # killed without a note
        return failed + 1, now
    if phase == "ready":
        return (failed + 1 if now - at < stable else 0), now
    return failed, at


def backoff(failed, start):
    """Gives the seconds to wait before a start that comes after so many failures in a row."""
    if failed == 0:
        return 0.0
    return min(start.get("backoff", 1.0) * 2.0 ** min(failed - 1, 30), start.get("maxBackoff", 60.0))
