"""Extracts numbers from what a load run left: the load tool's counts, two looks at the processes,
and captures.

It is used by scripts/report.py. Captures are read by `koltso profile FILE --classes --json`, which
knows what the functions are for; the counts of `koltso bench` are in load.json, and wrk2 has only
its text. A value that a file does not have becomes None, never a guess. scripts/division.py divides
the classes that HTTP and exchange share; the text of the rule, with its error, is in
scripts/report.py.
"""

import json
import os
import re
import subprocess
import sys

import division

CLASSES = (
    "kernel network, HTTP",
    "kernel network, exchange",
    "HTTP: parse and answer",
    "storage",
    "exchange: frames, coordinator",
    "the profiler itself",
    "other",
)
TOP = 8


# ---- the load tool


def milliseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m|h)?", text).groups()
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000, None: 1000, "m": 60_000, "h": 3_600_000}[unit]


def load(folder):
    """What the load tool counted; latencies are in ms."""
    try:
        with open(os.path.join(folder, "load.json")) as file:
            counted = json.load(file)
    except FileNotFoundError:
        with open(os.path.join(folder, "load.txt"), errors="replace") as file:
            return load_of_wrk2(file.read())
    latency, errors = counted["latency_us"], counted["errors"]
    return {
        "requests": counted["requests"],
        "rate": counted["requests_per_second"],
        "percentiles": {name: latency["p" + name] / 1000 for name in ("50", "75", "90", "99", "99.9", "100")},
        "max": latency["max"] / 1000,
        "recorded": counted["recorded"],
        "non_2xx": counted["non_2xx_3xx"],
        # As in wrk2, read errors include connections that closed early and answers that were not
        # HTTP.
        "errors": {"connect": errors["connect"], "read": errors["read"] + errors["closed"] + errors["malformed"],
                   "write": errors["write"], "timeout": errors["timeout"]},
    }


def load_of_wrk2(text):
    """The maximum is that of the recorder, from the last line."""
    def number(pattern):
        match = re.search(pattern, text, re.MULTILINE)
        return float(match[1]) if match else 0.0
    percentiles = {}
    at = text.find("HdrHistogram - Recorded Latency")
    for line in text[at:].split("\n")[1:] if at >= 0 else []:
        match = re.fullmatch(r"\s*([\d.]+)%\s+([\d.]+[a-z]*)\s*", line)
        if not match:
            break
        percentiles["%g" % float(match[1])] = milliseconds(match[2])
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    most = re.search(r"#\[Max\s+=\s+([\d.]+)", text)
    return {
        "requests": int(number(r"^\s*(\d+) requests in")),
        "rate": number(r"^Requests/sec:\s+([\d.]+)"),
        "percentiles": {name: value for name, value in percentiles.items() if name not in ("99.99", "99.999")},
        "max": float(most[1]) if most else percentiles.get("100"),
        "recorded": int(number(r"Total count\s+=\s+(\d+)")),
        "non_2xx": int(number(r"Non-2xx or 3xx responses: (\d+)")),
        "errors": dict(zip(("connect", "read", "write", "timeout"), map(int, errors.groups()) if errors else (0,) * 4)),
    }


# ---- the processes


def cpu(before, after, nodes, requests):
    """Microseconds of CPU a request, from `capture.py cpu` before and after; the first node is the asked one."""
    tick_us = 1e6 / os.sysconf("SC_CLK_TCK") / max(requests, 1)
    user = system = asked = everything = 0
    for pid in map(str, nodes):
        was, now = before[pid], after[pid]
        used = [0, 0]
        for thread, ticks in now["threads"].items():
            begin = was["threads"].get(thread, (0, 0))
            used = [used[i] + ticks[i] - begin[i] for i in range(2)]
        user, system = user + used[0], system + used[1]
        asked += sum(used) if pid == str(nodes[0]) else 0
        everything += sum(now["all"]) - sum(was["all"])
    return {
        "user_us": round(user * tick_us, 3), "system_us": round(system * tick_us, 3), "asked_us": round(asked * tick_us, 3),
        "profiler_us": round(max(everything - user - system, 0) * tick_us, 3),
    }


def window(folder, seconds, method):
    """How many requests the node answered while CPU, allocations and locks were captured."""
    def answered(moment):
        pattern = r'^koltso_request_duration_seconds_count\{operation="%s"[^}]*\} (\d+)' % method
        with open(os.path.join(folder, "metrics." + moment)) as file:
            return sum(int(count) for count in re.findall(pattern, file.read(), re.MULTILINE))
    return {"seconds": round(seconds, 3), "requests": answered("after") - answered("before")}


# ---- captures


def divided(koltso, folder, kind):
    """A capture by classes and functions, as `koltso profile` prints it; None if there is none."""
    path = os.path.join(folder, kind + ".pb.gz")
    if not os.path.exists(path):
        return None
    ended = subprocess.run([koltso, "profile", path, "--classes", "--json"], capture_output=True, timeout=120, check=False)
    if ended.returncode:
        sys.stderr.write(ended.stderr.decode(errors="replace"))
        return None
    return json.loads(ended.stdout)


def classes(capture, folder, pid, ports):
    """Where the asked node's CPU went, in per cent by class. None without a capture or samples."""
    if not capture or not capture["total"]:
        return None
    counts = division.operations(os.path.join(folder, "ss.before"), os.path.join(folder, "ss.after"), [pid], ports)[pid]
    weight = division.divide(capture["classes"], counts)
    both = lambda name: weight[name, "user"] + weight[name, "kernel"]
    sums = (weight["HTTP", "kernel"], weight["exchange", "kernel"] + weight["coordinator", "kernel"], weight["HTTP", "user"],
            both("storage"), weight["exchange", "user"] + weight["coordinator", "user"], both("profiler"), both("other"))
    (http_out, http_in), (exchange_out, exchange_in) = counts[True], counts[False]
    lacks = [(capture["lost"], "samples lost by the kernel"), (capture["throttled"], "times throttled by the kernel"),
             (capture["dropped"], "samples beyond the bounds of a capture")]
    return {
        "percent": {name: round(100 * value / capture["total"], 2) for name, value in zip(CLASSES, sums)},
        "segments": [http_out, exchange_out, http_in, exchange_in],
        "total": capture["total"],
        "engine": "; ".join([capture["engine"].rstrip(".")] + ["%d %s" % lack for lack in lacks if lack[0]]) + ".",
    }


def top(capture):
    """The largest sums of a capture, and what it leaves out of them. None without a capture."""
    return capture and {"unit": capture["unit"], **capture["top"], "rows": capture["top"]["rows"][:TOP]}
