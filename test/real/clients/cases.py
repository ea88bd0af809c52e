"""Runs the cases of a client script and reports each as one line of JSON.

A case is a function whose name starts with case_; it takes the context that the
script made. The last line says how many there were, so that a script that ends
early is seen.
"""

import json
import sys
import traceback


def run(module, context):
    found = [(n[5:], f) for n, f in vars(module).items() if n.startswith("case_")]
    for name, case in found:
        line = {"case": name, "ok": True}
        try:
            case(context)
        except Exception:  # every failure is a result; the next case runs all the same
            line = {"case": name, "ok": False, "detail": traceback.format_exc(limit=-4)}
        print(json.dumps(line), flush=True)
    print(json.dumps({"done": len(found)}), flush=True)


def equal(got, want, what=""):
    if got != want:
        raise AssertionError(f"{what}: got {got!r}, want {want!r}")


def true(got, what):
    if not got:
        raise AssertionError(f"{what}: got {got!r}")


def raises(kind, call):
    """Returns the error of that very kind that call must raise."""
    try:
        got = call()
    except kind as e:
        equal(type(e), kind, "kind of error")
        return e
    raise AssertionError(f"no {kind.__name__}, but {str(got)[:300]}")


def main(module, make_context):
    run(module, make_context(sys.argv[1:]))
