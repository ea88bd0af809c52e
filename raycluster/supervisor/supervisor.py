"""Runs one node of an engine's Ray cluster and, on the node that serves, the engine beside it.

Ray starts first, by the command that KubeRay made. The engine follows when enough nodes and GPUs have joined. The container
ends when either of them does. SIGTERM goes to the engine alone, so that its requests end before Ray does; a node without
an engine stays for as long as the head does, since the engine still works on its GPUs.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

STOP = (signal.SIGTERM, signal.SIGINT)
GRACE = 10.0  # seconds from SIGTERM to SIGKILL for what is left when the other one has ended
DASHBOARD = 8265


def say(text):
    print("mobula: " + text, file=sys.stderr, flush=True)


class Failure(Exception):
    """What to tell, and to end with status 1."""


def start(argv):
    """Starts a process in a group of its own, with the signals free that this one waits for."""
    return subprocess.Popen(
        argv, start_new_session=True,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD, *STOP]),
    )


def tell(process, number):
    """Sends a signal to all of a process's group."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def wait(seconds):
    """Waits for a child's end or a signal; gives its number, None when nothing came."""
    got = signal.sigtimedwait([signal.SIGCHLD, *STOP], max(0.0, seconds))
    return got.si_signo if got else None


def stop(process):
    """Ends a process and all of its group."""
    tell(process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while process.poll() is None and time.monotonic() < deadline:
        wait(0.2)
    tell(process, signal.SIGKILL)
    process.wait()


def reap(*keep):
    """Buries orphans, which become children of a container's first process."""
    if os.getpid() != 1:
        return
    known = {p.pid for p in keep if p}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in known:
            continue
        try:
            with open("/proc/%s/stat" % entry) as f:
                state, parent = f.read().rpartition(")")[2].split()[:2]
            if state == "Z" and parent == "1":
                os.waitpid(int(entry), os.WNOHANG)
        except OSError:
            pass  # it is gone already


def status(process):
    code = process.poll()
    return "was killed by signal %d" % -code if code < 0 else "ended with status %d" % code


def exit_code(process):
    code = process.poll()
    return 128 - code if code < 0 else code


def start_ray():
    command = os.environ.get("KUBERAY_GEN_RAY_START_CMD", "")
    if not command:
        raise Failure("KUBERAY_GEN_RAY_START_CMD is not set: this container is for pods of a RayCluster that KubeRay 1.5.1 or newer makes")
    if not shutil.which("ray"):
        raise Failure("no ray command in this image: vLLM's own images have had none since vLLM 0.18. Name one with both in "
                      "kubernetes.image, such as vLLM's with: pip install 'ray[default]'")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enough = 65536 if most == resource.RLIM_INFINITY else min(65536, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (enough, most))
    return start(["/bin/sh", "-c", "exec " + command])


def head():
    """Host and port of the head, as KubeRay names it in RAY_ADDRESS."""
    host, _, port = os.environ.get("RAY_ADDRESS", "127.0.0.1:6379").rpartition(":")
    return host, int(port)


class Nodes:
    """Counts the nodes that have joined."""

    def __init__(self, port):
        self.url = "http://%s:%d/api/v0/nodes?detail=1&limit=10000" % (head()[0], port)
        self.alive, self.gpus, self.trouble = 0, 0, "Ray's dashboard has not answered yet"

    def count(self):
        request = urllib.request.Request(self.url)
        token = os.environ.get("RAY_AUTH_TOKEN")
        if token:
            request.add_header("Authorization", "Bearer " + token)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                nodes = json.load(answer)["data"]["result"]["result"]
            alive = [n for n in nodes if n["state"] == "ALIVE"]
            self.alive = len(alive)
            self.gpus = int(sum((n.get("resources_total") or {}).get("GPU", 0) for n in alive))
            self.trouble = ""
        except (OSError, ValueError, KeyError, TypeError) as e:
            self.trouble = "Ray's dashboard does not answer yet (%s); in an image without ray[default] it never does" % e

    def describe(self, want, gpus):
        if self.trouble:
            return self.trouble
        return "%d of %d Ray nodes and %d of %d GPUs are there; the pods of the others: kubectl -n %s get pods -l ray.io/cluster=%s" % (
            self.alive, want, self.gpus, gpus,
            os.environ.get("RAY_CLUSTER_NAMESPACE", "NAMESPACE"), os.environ.get("RAY_CLUSTER_NAME", "NAME"))


def wait_for_nodes(ray, o):
    """Returns when the nodes are there; None, or the status to end with."""
    nodes, told, began = Nodes(o.dashboard_port), "", time.monotonic()
    while True:
        if ray.poll() is not None:
            raise Failure("Ray %s before all nodes were there; its own words are above" % status(ray))
        nodes.count()
        if not nodes.trouble and nodes.alive >= o.nodes and nodes.gpus >= o.gpus:
            say("all nodes are there: %d, with %d GPUs" % (nodes.alive, nodes.gpus))
            return None
        now = nodes.describe(o.nodes, o.gpus)
        if now != told:
            say("waiting: " + now)
            told = now
        if time.monotonic() - began > o.timeout:
            raise Failure("gave up after %ds: %s" % (o.timeout, now))
        if wait(1.0) in STOP:
            say("told to stop while waiting: " + now)
            return 128 + signal.SIGTERM
        reap(ray)


def serve(ray, o):
    """Runs the engine; gives the status to end with."""
    if not shutil.which(o.engine[0]):
        raise Failure("no command %s in this image: set engine.command or kubernetes.image" % o.engine[0])
    engine = start(o.engine)
    try:
        while True:
            got = wait(5.0)
            if got in STOP:
                say("told to stop: the engine ends its requests")
                os.kill(engine.pid, signal.SIGTERM)
            if engine.poll() is not None:
                say("the engine " + status(engine))
                return exit_code(engine)
            if ray.poll() is not None:
                say("Ray %s: the engine can't go on without it" % status(ray))
                return exit_code(ray) or 1
            reap(ray, engine)
    finally:
        stop(engine)


class Head:
    """Tells whether the head is there, by the address that it had before: its Service may be gone before it is."""

    def __init__(self):
        (self.host, self.port), self.address, self.misses = head(), None, 0

    def look(self):
        try:
            self.address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0][4]
        except OSError:
            pass

    def needs_us(self):
        if not self.address:
            return False
        try:
            socket.create_connection(self.address[:2], timeout=2).close()
            self.misses = 0
        except OSError:
            self.misses += 1
        return self.misses < 3


class Engine:
    """For a head without an engine: tells whether all the nodes that the engine works on are still there."""

    def __init__(self, o):
        self.nodes, self.want, self.misses = Nodes(o.dashboard_port), o.nodes, 0

    def look(self):
        pass

    def needs_us(self):
        self.nodes.count()
        self.misses = self.misses + 1 if self.nodes.trouble else 0
        return self.misses < 3 and (self.misses > 0 or self.nodes.alive >= self.want)


def follow(ray, other):
    """Is a node for others; gives the status to end with."""
    stopping = False
    other.look()
    while True:
        if wait(2.0) in STOP and not stopping:
            say("told to stop: this node stays for as long as the engine needs it")
            stopping = True
        if ray.poll() is not None:
            say("Ray " + status(ray))
            return 0 if stopping else exit_code(ray) or 1
        reap(ray)
        if not stopping:
            other.look()
        elif not other.needs_us():
            say("the engine is gone")
            return 0


def main(argv):
    p = argparse.ArgumentParser(prog="mobula supervisor")
    p.add_argument("--nodes", type=int, default=1)
    p.add_argument("--gpus", type=int, default=0)
    p.add_argument("--timeout", type=float, default=1800)
    p.add_argument("--dashboard-port", type=int, default=DASHBOARD)
    p.add_argument("--head", action="store_true", help="is the head, though the engine runs on another node")
    p.add_argument("engine", nargs="*")
    o = p.parse_args(argv)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, *STOP])
    ray = None
    try:
        ray = start_ray()
        if o.engine:
            code = wait_for_nodes(ray, o)
            return serve(ray, o) if code is None else code
        return follow(ray, Engine(o) if o.head else Head())
    except Failure as e:
        say(str(e))
        return 1
    finally:
        if ray:
            stop(ray)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
