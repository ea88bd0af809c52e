"""Starts and stops engines on a Ray cluster: the launcher of Mobula.

A Ray job runs main(): it makes actors and placement groups exist or end as its order says. An actor, MobulaEngine, starts
one engine (or one node's part of it), says where it serves, and ends when it ends. Between both stands the guard, a small
process: when the actor is gone, in whatever way, it stops the engine.
"""

import concurrent.futures
import inspect
import json
import logging
import os
import re
import signal
import sys
import threading
import time

import mobula_engine
from mobula_engine import VERSION, MobulaEngine, Record, part_name

ORDER = "MOBULA_ORDER"
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's name, by which a job tells its drivers of itself
ACTOR_CLASS = MobulaEngine.__name__
REGISTERED = 60  # seconds for GCS to take an actor, or to be done with a dead one


def read_order(text):
    """Decodes an order; ValueError says what is wrong with it."""
    if not text:
        raise ValueError("the environment has no " + ORDER)
    try:
        order = json.loads(text)
    except ValueError as err:
        raise ValueError("%s is no JSON: %s" % (ORDER, err)) from None
    if not isinstance(order, dict):
        raise ValueError(ORDER + " is no JSON object")
    if order.get("version") != VERSION:
        raise ValueError("%s has version %r: this launcher takes %d" % (ORDER, order.get("version"), VERSION))
    if not isinstance(order.get("namespace"), str) or not order["namespace"]:
        raise ValueError(ORDER + " names no namespace")
    starts, stops = order.get("start") or [], order.get("stop") or []
    need = {"name": str, "argv": list, "bundle": dict, "startTimeout": (int, float), "stopTimeout": (int, float)}
    for what, fields in [(s, need) for s in starts] + [(s, {"name": str}) for s in stops]:
        for field, kind in fields.items():
            if not isinstance(what, dict) or not isinstance(what.get(field), kind) or not what[field]:
                raise ValueError("%s: %s without %s" % (ORDER, json.dumps(what)[:200], field))
    if not all(isinstance(argv, list) and argv for s in starts for argv in s["argv"]):
        raise ValueError(ORDER + ": an engine without a command")
    if not order.get("detached") and (len(starts) != 1 or stops):
        raise ValueError(ORDER + ": without detached there is exactly one start")
    return dict(order, start=starts, stop=stops)


def say(text):
    print(" ".join(text.split("\n")) if not text.startswith("failed ") else text, flush=True)


# ---- the job


def main():
    try:
        order = read_order(os.environ.get(ORDER, ""))
    except ValueError as err:
        print(err, file=sys.stderr, flush=True)
        sys.exit(2)
    os.environ[JOB_CONFIG] = own_config(os.environ.get(JOB_CONFIG, "{}"))
    import ray

    ray.init(address="auto", namespace=order["namespace"], log_to_driver=False, logging_level=logging.ERROR)
    launcher = Launcher(order["namespace"], order.get("detached", False))
    if not launcher.detached:
        sys.exit(launcher.stay(order["start"][0]))
    done = [launcher.attempt(launcher.start, start) for start in order["start"]]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        done += pool.map(lambda stop: launcher.attempt(launcher.stop, stop), order["stop"])
    sys.exit(0 if all(done) else 1)


def own_config(job):
    """Gives what Ray says to a job of itself without its runtime environment: actors would take what they don't have from it,
    our py_modules beside an image, the order as a variable."""
    return json.dumps(dict(json.loads(job), runtime_env={}))


class Refused(Exception):
    """The text is the line to print: what was asked is not done and nothing was touched."""


class Launcher:
    def __init__(self, namespace, detached):
        import ray

        self.ray, self.namespace, self.detached = ray, namespace, detached
        self.made = []  # Ray ends an actor that isn't detached when nobody holds it

    def attempt(self, act, what):
        """Does one thing and says how it went."""
        try:
            say("%s %s" % (act(what), what["name"]))
        except Refused as err:
            say(str(err))
        except Exception as err:  # whatever Ray raises: the other things are still to be done
            say("failed %s: %s" % (what["name"], err))
        else:
            return True
        return False

    def start(self, start):
        """Makes group and actors of a replica exist: those that are there stay."""
        ranks = range(len(start["argv"]))
        actors = [self.find(part_name(start["name"], rank)) for rank in ranks]
        group = self.group(start["name"])
        if group is not None and group.bundle_count != len(actors):
            self.drop_group(start["name"], group)
            group = None
        if group is None:
            for actor in filter(None, actors):  # its group is gone: Ray is killing it
                self.kill(actor)
            actors, group = [None] * len(actors), self.make_group(start)
        for rank in ranks:
            if actors[rank] is not None and self.state(actors[rank]) == "DEPENDENCIES_UNREADY" and not self.registered(actors[rank], 5):
                self.kill(actors[rank])  # its launcher died before Ray had all of it: it would wait for ever
                actors[rank] = None
        if all(actors):
            return "there already"
        missing = [rank for rank in ranks if actors[rank] is None]
        for rank in missing:
            Record(self.namespace, part_name(start["name"], rank)).renew()
        made = [self.make_actor(start, rank, group) for rank in missing]
        self.made += made
        for actor in made:
            if not self.registered(actor, REGISTERED):
                raise RuntimeError("ray has not registered the actor within %d s" % REGISTERED)
        return "started"

    def stop(self, stop):
        """Ends all parts of a replica, and then its group."""
        name, timeout = stop["name"], stop.get("timeout") or 1
        actors = [self.find(n) for n in self.parts(name)]
        group = self.group(name)
        refs = {}
        for actor in filter(None, actors):
            if self.state(actor) == "ALIVE":
                refs[actor.stop.remote(timeout)] = actor
        deadline = time.monotonic() + timeout + 10
        while refs and time.monotonic() < deadline:
            over, _ = self.ray.wait(list(refs), num_returns=1, timeout=0.5)
            over += [ref for ref, actor in refs.items() if self.state(actor) != "ALIVE"]
            for ref in over:
                refs.pop(ref, None)
        for actor in filter(None, actors):
            self.kill(actor)
        if group is not None:
            self.drop_group(name, group)
        for part in self.parts(name) + Record.names(self.namespace, name):
            Record(self.namespace, part).forget()
        return "stopped" if any(actors) or group is not None else "gone already"

    def stay(self, start):
        """Starts the one replica of a job and stays as long as it: what isn't detached ends with the job. Gives an exit code."""
        asked = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: asked.set())
        deadline = time.monotonic() + REGISTERED
        while any(self.find(n) for n in self.parts(start["name"])) and time.monotonic() < deadline and not asked.wait(0.5):
            pass  # those of a job before are about to end
        start = dict(start, attempts=1)
        try:
            if not asked.is_set():
                if self.start(start) != "started":
                    raise Refused("failed %s: another job runs it" % start["name"])
                say("started " + start["name"])
        except Exception as err:
            say(str(err) if isinstance(err, Refused) else "failed %s: %s" % (start["name"], err))
            return 1
        ranks = range(len(start["argv"]))
        actors = [self.find(part_name(start["name"], rank)) for rank in ranks]
        while not asked.wait(0.5):
            if any(actor is None or self.state(actor) in ("DEAD", None) for actor in actors):
                break
        if asked.is_set():
            say("%s %s" % (self.stop({"name": start["name"], "timeout": start["stopTimeout"]}), start["name"]))
            return 0
        time.sleep(1)  # for the other parts to note why
        records = [Record(self.namespace, part_name(start["name"], rank)).read() for rank in ranks]
        reasons = [r["reason"] for r in records if r.get("reason")] or ["its actor died: see the actor in Ray's dashboard"]
        say("failed %s: %s" % (start["name"], reasons[0]))
        for actor in filter(None, actors):
            self.kill(actor)
        return 1

    def find(self, name):
        """Gives the actor of that name unless it is dead; Refused if it is somebody else's."""
        try:
            actor = self.ray.get_actor(name, namespace=self.namespace)
        except ValueError:
            return None
        info = self.table(actor)
        if info.get("State") == "DEAD":
            return None
        if info.get("ActorClassName", ACTOR_CLASS).rsplit(".", 1)[-1] != ACTOR_CLASS:
            raise Refused("name taken: %s is an actor of class %s in namespace %s" % (name, info["ActorClassName"], self.namespace))
        return actor

    def parts(self, name):
        """Names the actors that a replica has now."""
        ours = re.compile(re.escape(name) + r"(\.[1-9][0-9]*)?")
        return sorted(n for n in self.ray.util.list_named_actors() if ours.fullmatch(n)) or [name]

    def table(self, actor):
        return self.ray._private.state.actors(actor._actor_id.hex()) or {}

    def state(self, actor):
        return self.table(actor).get("State")

    def registered(self, actor, seconds):
        """Waits until GCS has all of an actor, so that it starts without us."""
        return until(lambda: self.state(actor) not in ("DEPENDENCIES_UNREADY", None), seconds)

    def kill(self, actor):
        self.ray.kill(actor, no_restart=True)
        if not until(lambda: self.state(actor) in ("DEAD", None), REGISTERED):
            raise RuntimeError("ray has not ended the actor within %d s" % REGISTERED)

    def group(self, name):
        try:
            return self.ray.util.get_placement_group(name)
        except ValueError:
            return None

    def drop_group(self, name, group):
        self.ray.util.remove_placement_group(group)
        if not until(lambda: self.group(name) is None, REGISTERED):
            raise RuntimeError("ray has not removed the placement group within %d s" % REGISTERED)

    def make_group(self, start):
        create, parts, more = self.ray.util.placement_group, len(start["argv"]), {}
        bundle = {k: v for k, v in start["bundle"].items() if v}
        if start.get("labels"):
            if "bundle_label_selector" not in inspect.signature(create).parameters:
                raise RuntimeError("ray %s can't select nodes by label: leave hostLabels out or update Ray" % self.ray.__version__)
            more["bundle_label_selector"] = [start["labels"]] * parts
        if self.detached:
            more["lifetime"] = "detached"
        return create([bundle] * parts, strategy="STRICT_PACK" if parts == 1 else "STRICT_SPREAD", name=start["name"], **more)

    def make_actor(self, start, rank, group):
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle = {k: v for k, v in start["bundle"].items() if v}
        options = {
            "name": part_name(start["name"], rank),
            "namespace": self.namespace,
            "max_restarts": -1 if self.detached else 0,
            "num_cpus": bundle.pop("CPU", 0),
            "num_gpus": bundle.pop("GPU", 0),
            "memory": int(bundle.pop("memory", 0)) or None,
            "resources": bundle,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, rank, False),
            "runtime_env": start.get("runtimeEnv") or {},
        }
        if self.detached:
            options["lifetime"] = "detached"
        self.ray.cloudpickle.register_pickle_by_value(mobula_engine)  # an image takes no py_modules beside it
        cls = self.ray.remote(MobulaEngine).options(**options)
        return cls.remote(start, rank, self.namespace)


def until(true, seconds):
    """Waits for something to be true."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
