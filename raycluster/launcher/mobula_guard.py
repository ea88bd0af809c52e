"""The guard of an engine: a process between an actor of Ray's and the engine, see mobula_launcher.

It starts the engine, carries what it prints, and tells how it ended. When the actor is gone, in whatever way, or asks for it,
the guard stops the engine and all that the engine has started. It needs nothing of Ray.
"""

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

BUFFER = 256 << 10  # bytes of output that wait for an actor that doesn't read
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)  # by the guard: the actor decides


def main(args):
    """Takes three file descriptors, the seconds that an engine has to stop, a name that no two guards on a node have, and a command.

    From control comes, at the end, the number of seconds from SIGTERM to SIGKILL, or nothing for SIGKILL at once; to output goes what the engine prints; to report go
    JSON objects, one a line: {"pid": …} of the engine, then {"status": …} as wait gives it, or {"error": …}.
    """
    if os.fork():
        os._exit(0)  # what goes on is nobody's child: Ray kills the children of a worker that ends
    control, output, report = (low(int(fd)) for fd in args[:3])
    guard = Guard(control, output, report, float(args[3]))
    if guard.take(args[4]) and guard.start(args[5:]):
        guard.watch()
        guard.clear()


class Guard:
    """Holds one engine."""

    def __init__(self, control, output, report, grace):
        self.control, self.report, self.grace = control, report, grace
        self.lock, self.engine, self.status, self.pump = None, 0, None, None
        self.prctl = ctypes.CDLL(None).prctl
        self.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what the engine leaves behind becomes ours
        for sig in IGNORED:
            signal.signal(sig, signal.SIG_IGN)
        self.wake, woken = os.pipe()
        for fd in (self.wake, woken, output):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.output = output

    def take(self, name):
        """Waits until the guard of a run before is done, so that two engines never share what the actor has."""
        self.lock, deadline = socket.socket(socket.AF_UNIX), time.monotonic() + self.grace + 15
        while time.monotonic() < deadline:
            try:
                self.lock.bind("\0mobula/" + name)
                return True
            except OSError:
                if select.select([self.control], [], [], 0.1)[0]:
                    return False  # the actor has gone
        self.tell(error="the engine of the run before does not end on this node")
        return False

    def start(self, argv):
        out, into = os.pipe()
        os.set_blocking(out, False)
        guard = os.getpid()

        def prepare():  # in the engine's process
            for sig in IGNORED:
                signal.signal(sig, signal.SIG_DFL)
            self.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != guard:
                os._exit(1)

        try:
            engine = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=into, stderr=into, start_new_session=True, preexec_fn=prepare
            )
        except OSError as err:
            self.tell(error="%s can't be started: %s" % (argv[0], err.strerror))
            return False
        os.close(into)
        self.engine, self.pump = engine.pid, Pump(out, self.output)
        engine.returncode = 0  # reap does that
        self.tell(pid=self.engine)
        return True

    def watch(self):
        """Carries what the engine prints, until it has ended or has had its time to."""
        kill_at = None
        while self.status is None and (kill_at is None or time.monotonic() < kill_at):
            readers = [self.wake] + self.pump.readers() + ([self.control] if kill_at is None else [])
            wait = None if kill_at is None else max(kill_at - time.monotonic(), 0)
            ready = select.select(readers, self.pump.writers(), [], wait)[0]
            if self.wake in ready:
                os.read(self.wake, 4096)
            if self.control in ready:
                said = os.read(self.control, 64)
                kill_at = time.monotonic() + (float(said) if said else 0)
                if said:  # else the actor has gone: an orderly stop would end requests half-way, with answers that look whole
                    signal_group(self.engine, signal.SIGTERM)
            self.pump.turn()
            self.reap()

    def clear(self):
        """Kills what is left of the engine, and then tells how it ended."""
        deadline = time.monotonic() + 10
        while True:
            signal_group(self.engine, signal.SIGKILL)
            for pid in descendants(os.getpid()):
                signal_process(pid, signal.SIGKILL)
            if self.reap() or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        self.pump.flush(1)
        self.tell(status=self.status)

    def reap(self):
        """Takes the children that have ended; true when there are no others."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self.engine:
                self.status = status

    def tell(self, **what):
        try:
            os.write(self.report, (json.dumps(what) + "\n").encode())
        except OSError:
            pass  # the actor has gone


def low(fd):
    """Gives the file descriptor another number: select takes those below 1024."""
    try:
        return os.dup(fd)
    finally:
        os.close(fd)


def signal_group(pid, sig):
    try:
        os.killpg(pid, sig)
    except OSError:
        pass  # nobody is left


def signal_process(pid, sig):
    try:
        os.kill(pid, sig)
    except OSError:
        pass  # it has ended by itself


def descendants(root):
    """Lists the processes below one."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open("/proc/%s/stat" % entry, "rb") as f:
                    parent = int(f.read().rsplit(b")", 1)[1].split()[1])
            except (OSError, IndexError, ValueError):
                continue  # ended meanwhile
            children.setdefault(parent, []).append(int(entry))
    found, at = [], [root]
    while at:
        below = children.get(at.pop(), [])
        found += below
        at += below
    return found


class Pump:
    """Carries what the engine prints to the actor. The engine never waits for it: what the actor doesn't take is dropped."""

    def __init__(self, source, sink):
        self.source, self.sink, self.waiting = source, sink, bytearray()

    def readers(self):
        return [] if self.source is None else [self.source]

    def writers(self):
        return [self.sink] if self.waiting else []

    def turn(self):
        """Carries what can be carried without waiting; false when nothing could."""
        chunk = self.read()
        if self.sink is not None and len(self.waiting) < BUFFER:
            self.waiting += chunk
        return bool(chunk) | self.write()

    def read(self):
        if self.source is None:
            return b""
        try:
            chunk = os.read(self.source, 65536)
        except BlockingIOError:
            return b""
        if not chunk:
            self.source = None
        return chunk

    def write(self):
        if not self.waiting:
            return False
        try:
            del self.waiting[: os.write(self.sink, self.waiting)]
        except BlockingIOError:
            return False
        except OSError:  # the actor has gone
            self.sink = None
            self.waiting.clear()
        return True

    def flush(self, seconds):
        """Carries what is left, for so long."""
        deadline = time.monotonic() + seconds
        while (self.turn() or self.waiting) and time.monotonic() < deadline:
            select.select([], self.writers(), [], 0.1 if self.waiting else 0)


if __name__ == "__main__":
    main(sys.argv[2:])  # the first is its name, for those who list processes: it is run as text, from no file
