"""Numbers out of what a load run left: the load tool's output, two looks at the processes, and captures as folded stacks.

For scripts/report.py; pure apart from reading the files it is told. What a file does not have becomes None, never a guess.
The rule that divides CPU is scripts/fold.py's; the text of it, with its error, is in scripts/report.py.
"""

import collections
import os
import re

import fold
from capture import PROFILER_THREADS

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
NAME_MAX = 110

# Functions of ours, whatever they are instantiated with.
OURS = re.compile(r"[<&]*(?:dyn |mut |\*const |\*mut )?koltso(?:_(?!profiling)[a-z]+)?::")
# What a node does for its captures and for the counters that a report reads; its allocator and its locks are not of that.
PROFILER = re.compile(r"[<&]*(?:koltso_profiling::(?!alloc|locks)|koltso::admin::(?:pprof|control|metrics::Scrape)\b)")
# What stands between an allocation and who wanted it.
LIBRARY = re.compile(r"[<&]*(?:core|std|alloc|hashbrown|smallvec|bytes)::|__rust|_*mi_|alloc<|koltso_profiling|(?:m|c|re)alloc$"
                     r"|\[libc|(?:lifecycle|panic|panicking|unwind_safe|raw_vec|vec|boxed|::call_once|::new)(?:::|$)")
# Of the C library, which has no frame pointers: often all that is known of who called the kernel.
C_LIBRARY = re.compile(r"(?:syscall|_*(?:send|recv)\w*|clock_nanosleep)$")
PREEMPTED = {"exit_to_user_mode_loop", "irqentry_exit_to_user_mode", "irqentry_exit", "preempt_schedule_irq"}

Frame = collections.namedtuple("Frame", "name place")  # place: user, kernel or inlined


# ---- the load tool


def milliseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m|h)?", text).groups()
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000, None: 1000, "m": 60_000, "h": 3_600_000}[unit]


def load(text):
    """What wrk2 or `koltso bench` printed; latencies in ms. The maximum is the recorder's own, of its last line."""
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
    """Microseconds of CPU a request, from `capture.py cpu` before and after; the first of the nodes is the asked one."""
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
    """Requests that the node answered while CPU, allocations and locks were captured."""
    def answered(moment):
        pattern = r'^koltso_request_duration_seconds_count\{operation="%s"[^}]*\} (\d+)' % method
        with open(os.path.join(folder, "metrics." + moment)) as file:
            return sum(int(count) for count in re.findall(pattern, file.read(), re.MULTILINE))
    return {"seconds": round(seconds, 3), "requests": answered("after") - answered("before")}


# ---- captures


def stacks(path):
    """Yields (thread, frames from the innermost on, value) of folded stacks."""
    with open(path, errors="replace") as lines:
        for line in lines:
            stack, _, value = line.rpartition(" ")
            thread, *names = stack.split(";")
            yield thread, [frame(name) for name in reversed(names)], int(value)


def frame(name):
    for mark, place in (("_[k]", "kernel"), ("_[i]", "inlined")):
        if name.endswith(mark):
            return Frame(name[: -len(mark)], place)
    return Frame(name, "user")


def is_profiler(kind, thread, frames):
    """Whether it is for captures. Allocations do not know their thread."""
    return thread in PROFILER_THREADS or kind == "alloc" and any(PROFILER.match(f.name) for f in frames)


def unit_and_engine(folder, kind):
    """The unit of a capture's values, and its own sentence on how they were taken."""
    try:
        with open(os.path.join(folder, kind + ".text")) as file:
            text = file.read()
    except FileNotFoundError:
        return {"cpu": "nanoseconds", "alloc": "bytes"}.get(kind, "nanoseconds"), ""
    unit = re.search(r"in all \(\S+ in (\S+)\)", text)
    said = [line for line in text.split("\n\n")[0].split("\n")[1:] if line]
    return unit[1] if unit else "count", "; ".join(line.rstrip(".") for line in said) + "."


def classes(folder, pid, ports):
    """Where the asked node's CPU went: per cent by class. None where there are no stacks, or no samples."""
    path = os.path.join(folder, "cpu.folded")
    if not os.path.exists(path):
        return None
    counts = fold.operations(os.path.join(folder, "ss.before"), os.path.join(folder, "ss.after"), [pid], ports)[pid]
    shares = fold.http_shares(counts)
    weight = collections.Counter()
    total = 0
    for thread, frames, value in stacks(path):
        total += value
        in_kernel = bool(frames) and frames[0].place == "kernel"
        if thread in PROFILER_THREADS:
            weight["the profiler itself"] += value
            continue
        physical = [(f.name, f.place == "kernel") for f in frames if f.place != "inlined"]
        found = fold.own_class(thread, physical)
        if found in ("storage", "other"):
            weight[found] += value
            continue
        http = float(found == "HTTP") if found else fold.shared_work(physical, shares)[0]
        weight["kernel network, HTTP" if in_kernel else "HTTP: parse and answer"] += http * value
        weight["kernel network, exchange" if in_kernel else "exchange: frames, coordinator"] += (1 - http) * value
    if not total:
        return None
    (http_out, http_in), (exchange_out, exchange_in) = counts[True], counts[False]
    return {
        "percent": {name: round(100 * weight[name] / total, 2) for name in CLASSES},
        "segments": [http_out, exchange_out, http_in, exchange_in],
        "total": total,
        "engine": unit_and_engine(folder, "cpu")[1],
    }


def short(name):
    name = re.sub(r"(?:::\{\{?closure\}?\}(?:#\d+)?)+", "::{closure}", name)
    return name if len(name) <= NAME_MAX else name[: NAME_MAX - 1] + "…"


def site(frames):
    """Who wanted it: the innermost function of ours that is not the profiler's; else the innermost that is no library's."""
    names = [f.name for f in frames if f.place != "kernel"]
    ours = next(filter(OURS.match, names), None)
    others = [name for name in names if not LIBRARY.match(name)]
    other = next((name for name in others if not C_LIBRARY.match(name)), next(iter(others), None))
    return short(ours or other or "a stack without functions of ours")


def reason(frames):
    """Why a thread was off the CPU: the system call it was in, or that others got the processor."""
    kernel = [f.name for f in frames if f.place == "kernel"]
    if PREEMPTED.intersection(kernel):
        return "preempted"
    named = next((match[1] for name in kernel if (match := re.match(r"__(?:x64|arm64|se)_sys_(\w+)", name))), None)
    return named or (kernel[-1] if kernel else "blocked")


def what(kind, thread, frames):
    if kind == "cpu":
        return short(frames[0].name + (" (kernel)" if frames[0].place == "kernel" else "")) if frames else "?"
    if kind == "alloc":
        return site(frames)
    if kind == "lock":
        # The innermost frame is the name of the lock or of the wait.
        return "%s in %s" % (short(frames[0].name), site(frames[1:])) if frames else "?"
    return "%s, %s, %s" % (thread, reason(frames), site(frames))


def top(folder, kind):
    """The largest sums of a capture. Left out and summed apart: what captures themselves cost, and off-CPU time of threads that are
    no data cores, since these mostly sleep until there is work. None where there are no stacks."""
    path = os.path.join(folder, kind + ".folded")
    if not os.path.exists(path):
        return None
    sums = collections.Counter()
    total = profiler = background = 0
    for thread, frames, value in stacks(path):
        if kind == "offcpu" and not thread.startswith(fold.CORE_THREAD):
            background += value
            continue
        if kind != "cpu" and is_profiler(kind, thread, frames):
            profiler += value
            continue
        total += value
        sums[what(kind, thread, frames)] += value
    return {"unit": unit_and_engine(folder, kind)[0], "total": total, "profiler": profiler, "background": background,
            "rows": sums.most_common(TOP)}
