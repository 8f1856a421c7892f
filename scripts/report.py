#!/usr/bin/env python3
"""The texts of a load report, for scripts/report.sh: reads what a run left and writes what it shows.

    scripts/report.py check --out DIR --folder DIR --runs N --data-mib N --port N
                                                      # before anything is started: one sentence and exit code 2
    scripts/report.py run FOLDER NAME=VALUE ...       # a run's README.md, machine.txt and run.json, from its raw files
    scripts/report.py summary DIR                     # DIR/README.md from all DIR/*/run.json; also after CONCLUSIONS.md was edited

The meaning of a run's numbers is in scripts/analysis.py. `run` removes the raw files that are in no
report (sockets, counters). DIR/CONCLUSIONS.md is written only if it does not exist. Nothing here
starts or asks a server.
"""

import argparse
import errno
import json
import os
import re
import shutil
import socket
import sys
import tempfile

sys.dont_write_bytecode = True  # nothing is left behind in scripts/
import analysis

# Measured with `wrk2 -t4 -c64 -R10000 -d1m` on a laptop: the system that this one is to leave
# behind (served/s; p50, p99 and max in ms; answers that were not 2xx; all answers; timeouts).
BEFORE = {
    "put": (3128, 25360, 40800, 41580, 69046, 187689, 64),
    "put-ack2from3": (2776, 35060, 57000, 57640, 57553, 166584, 192),
    "get": (3441, 22180, 38960, 39680, 79284, 206503, 0),
    "get-ack2from3": (2841, 19480, 38470, 40240, 59540, 170732, 128),
}
STANDARD = {"threads": 4, "connections": 64, "rate": 10000, "duration_s": 60}
# Room for a run's folder: those of a minute take 1.5 MiB.
REPORT_MIB = 8
PARAMETERS = ("ack", "from", "duration_s", "threads", "connections", "rate", "keys", "size", "node_threads")
FILES = {
    "load.txt": "what the load tool printed",
    "cpu.html": "CPU: heatmap over time, and the flame graph of any span of it",
    "alloc.html": "allocations: the same",
    "lock.html": "locks and waits: flame graph",
    "offcpu.html": "time off the CPU: flame graph",
    "cpu.svg": "CPU", "alloc.svg": "allocations", "lock.svg": "locks and waits", "offcpu.svg": "time off the CPU",
    "cpu.pb.gz": "CPU, for `go tool pprof`", "alloc.pb.gz": "allocations, the same", "heap.pb.gz": "heap in use, the same",
    "lock.pb.gz": "locks and waits, the same", "offcpu.pb.gz": "time off the CPU, the same",
    "stalls.txt": "turns of the event loops that took long",
    "machine.txt": "the machine and the versions",
    "run.json": "all of this for programs",
}
RAW = ("load.json", "ss.before", "ss.after", "metrics.before", "metrics.after", "cpu.before", "cpu.after", "captures.json")
KIND_NAMES = {"cpu": "CPU", "alloc": "Allocations", "lock": "Locks and waits", "offcpu": "Time off the CPU"}

RULE = """The samples are those of the node that the load tool asked (the other two do storage and exchange only). For each sample:

1. Threads that seal, sync, compact and provision segments are storage. `koltso-capture` and `koltso-profiler` are the profiler.
2. Otherwise the innermost function of ours on the stack decides, also for kernel samples below it: `koltso_net::replica`,
   `koltso::member`, `koltso::replica::clock` and `koltso_hints` are exchange; `koltso_cluster` is coordinator, which the tables of
   a report add to the exchange; `koltso::front`, `koltso::node::dispatch`, `koltso::counters`, `koltso::admin::status`,
   `koltso::admin::metrics` and the rest of `koltso_net` are HTTP; `koltso_storage`, `koltso::replica` and
   `koltso::replica::commit` are storage. Inlined code counts as the function into which it was inlined, and
   `koltso_net::transport` as the function that calls it.
3. The rest of a core's thread is the ring, its system calls and the event loop, which HTTP and exchange share. Sends through the
   ring are HTTP's: frames to and from other nodes leave by `sendto` and `sendmsg`, as their stacks show. Receives are divided by the
   data segments that the node's sockets took in during the capture (`ss -i`, before and after), all else by the ring's operations:
   segments in and out of HTTP, and segments in of the exchange.
4. All other threads are "other".

Kernel samples of HTTP and exchange are "kernel network": sockets, the ring, waking and going to sleep, and a few page faults.
**Its error:** a segment is not an operation: a receive may bring several, so the division of receives and turns is an estimate; sends,
which are most of it, are counted with their real cost. On loopback a send includes
the receiver's protocol work. Without the privilege for kernel samples a system call is charged to its caller, and the kernel's
rows are empty. `koltso profile FILE --classes` counts by the table of `src/admin/classes.rs`; `scripts/division.py` divides what is
shared."""

CONCLUSIONS = """Nothing is written down yet. This text is in `CONCLUSIONS.md`, which no script writes again; after a change,
`scripts/report.py summary` with this folder shows it here.
"""


def fail(sentence):
    sys.stderr.write(sentence + "\n")
    sys.exit(2)


def check(arguments):
    """Checks that the folders can be written and have room and that the ports are free; leaves nothing."""
    check_out(arguments.out, arguments.runs)
    check_room("--folder", arguments.folder, arguments.folder, arguments.data_mib, "the data of these runs")
    if not arguments.port:
        return
    for port in range(arguments.port, arguments.port + 3):
        for number in (port, port + 10000):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", number))
                except OSError as error:
                    fail("Port %d cannot be used (%s): the nodes need %d to %d and the same 10000 above; say another --port." % (
                        number, error.strerror, arguments.port, arguments.port + 2))


def check_out(out, runs):
    """Checks that the reports can be written. Only a try tells: permissions say nothing to root, or of a read-only disk."""
    place = os.path.abspath(out)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    try:
        if not os.path.isdir(place):
            raise NotADirectoryError(errno.ENOTDIR, "%s is not a folder" % place)
        probe = tempfile.mkdtemp(prefix=".koltso-report-", dir=place)
        try:
            with open(os.path.join(probe, "probe"), "wb") as file:
                file.write(b"probe")
        finally:
            shutil.rmtree(probe, ignore_errors=True)
        for name in ("README.md", "CONCLUSIONS.md"):
            path = os.path.join(out, name)
            if os.path.lexists(path):
                with open(path, "r+"):  # written at the end, or read
                    pass
    except OSError as error:
        fail("The folder %s cannot be written (%s): say another one with --out." % (out, error.strerror))
    check_room("--out", out, place, REPORT_MIB * runs, "the reports of these runs")


def check_room(flag, said, place, needed_mib, what):
    try:
        room = os.statvfs(place)
    except OSError as error:
        fail("The folder %s cannot be used (%s): say another one with %s." % (said, error.strerror, flag))
    free_mib = room.f_bavail * room.f_frsize >> 20
    if free_mib < needed_mib:
        fail("The folder %s has room for %d MiB, and %s may take %d: say another one with %s." % (said, free_mib, what, needed_mib, flag))


# ---- numbers and names for people


def time_text(ms):
    if ms is None:
        return "–"
    return "%.2f s" % (ms / 1000) if ms >= 1000 else "%.2f ms" % ms


def whole(number):
    return "{:,}".format(round(number)).replace(",", " ")


def amount(value, unit):
    """Formats a value as the server's own texts do."""
    scales = {"nanoseconds": [(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns")], "bytes": [(2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")]}
    if unit not in scales:
        return whole(value)
    size, name = next((scale for scale in scales[unit] if abs(value) >= scale[0]), scales[unit][-1])
    return "%.*f %s" % (0 if size == 1 else 1, value / size, name)


def cell(text):
    return text.replace("|", "\\|").replace("`", "'")


def table(caption, head, rows, left=1):
    """A table in Markdown with a caption above it; the first `left` columns are text."""
    lines = ["*%s*" % caption, "", "| %s |" % " | ".join(head), "|%s|" % "|".join("---" if i < left else "---:" for i in range(len(head)))]
    return "\n".join(lines + ["| %s |" % " | ".join(row) for row in rows]) + "\n"


def title(run):
    replicas = "one copy" if run["from"] == 1 else "ack=%d of from=%d" % (run["ack"], run["from"])
    return "%s, %s" % (run["method"].upper(), replicas)


def moment(text):
    day, clock = text[:10], text[11:19].replace("-", ":")
    return "%s %s" % (day, clock)


def arguments_text(run):
    return "-t%d -c%d -R%d -d%s" % (run["threads"], run["connections"], run["rate"], run["name"].rsplit("_d", 1)[1])


def of_all(count, all_):
    return "%s of %s (%.0f %%)" % (whole(count), whole(all_), 100 * count / all_) if count and all_ else whole(count)


# ---- a run


def one_run(arguments):
    folder = arguments.folder
    facts = dict(pair.split("=", 1) for pair in arguments.facts)
    nodes = [int(pid) for pid in facts.pop("nodes").split(",")]
    ports = [int(port) for port in facts.pop("ports").split(",")]
    run = dict(facts)
    for name in PARAMETERS:
        run[name] = int(run[name])
    for name in ("load_average", "load_cpu_s", "others_percent", "steal_percent"):
        run[name] = float(run[name])
    run["machine"] = machine()
    koltso = run.pop("binary")
    run["load"] = analysis.load(folder)
    if not run["load"]["requests"]:
        sys.exit("The load tool counted no answer; see what it said:\n%s" % read(folder, "load.txt")[-300:])
    document = json.loads(read(folder, "captures.json"))
    run["captures"] = document["captures"]
    run["asked_url"] = "http://127.0.0.1:%d" % ports[0]
    run["cpu"] = analysis.cpu(json.loads(read(folder, "cpu.before")), json.loads(read(folder, "cpu.after")), nodes, run["load"]["requests"])
    run["window"] = analysis.window(folder, document["window_seconds"], run["method"])
    captures = {kind: analysis.divided(koltso, folder, kind) for kind in KIND_NAMES}
    run["classes"] = analysis.classes(captures["cpu"], folder, nodes[0], ports)
    run["top"] = {kind: analysis.top(capture) for kind, capture in captures.items()}
    run["files"] = sorted(name for name in os.listdir(folder) if name in FILES or name.endswith(".png"))
    run["files"] = sorted(set(run["files"]) | {"machine.txt", "run.json"})
    write(folder, "machine.txt", machine_text(run))
    write(folder, "README.md", run_text(run))
    write(folder, "run.json", json.dumps(run, indent=1, ensure_ascii=False) + "\n")
    write(folder, "line.txt", line(run) + "\n")
    for name in os.listdir(folder):
        if name in RAW:
            os.remove(os.path.join(folder, name))


def read(folder, name):
    with open(os.path.join(folder, name), errors="replace") as file:
        return file.read()


def write(folder, name, text):
    with open(os.path.join(folder, name), "w") as file:
        file.write(text)


def machine():
    def first(path, pattern):
        match = re.search(pattern, read("/proc", path), re.MULTILINE)
        return match[1] if match else "unknown"
    kernel = os.uname()
    return {
        "cpu": first("cpuinfo", r"^model name\s*: (.*)$"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(first("meminfo", r"^MemTotal:\s*(\d+)")) // 1024,
        "kernel": "%s %s %s" % (kernel.sysname, kernel.release, kernel.machine),
    }


def machine_lines(run):
    m = run["machine"]
    return [
        ("Koltso", "%s, tag %s" % (run["koltso"], run["tag"]) + (", built with %s" % run["rustc"] if run["rustc"] else "")),
        ("Load tool", run["tool_version"] if run["tool"] == "wrk2" else "koltso bench"),
        ("Machine", "%s, %d processors, %s MiB of memory, %s" % (m["cpu"], m["cores"], whole(m["memory_mib"]), m["kernel"])),
        ("Load average before", "%.2f" % run["load_average"]),
        ("Meanwhile", "other processes used %.0f %% of a processor, the hypervisor took %.0f %%" % (run["others_percent"], run["steal_percent"])),
        ("Cluster", "three nodes on this machine, %d data core%s each, --sync %s; the load tool shares the processors" % (
            run["node_threads"], "s"[: run["node_threads"] > 1], run["sync"])),
        ("Data", "%s keys, values of %d bytes, filled with three copies before" % (whole(run["keys"]), run["size"])),
    ]


def machine_text(run):
    return "".join("%s: %s\n" % pair for pair in machine_lines(run))


def line(run):
    load = run["load"]
    return "%.0f/s, p50 %s, p99 %s, max %s, %s not 2xx, %s timeouts" % (
        load["rate"], time_text(load["percentiles"].get("50")), time_text(load["percentiles"].get("99")), time_text(load["max"]),
        whole(load["non_2xx"]), whole(load["errors"]["timeout"]))


def conclusion(run):
    """What came out, in a sentence or two: whether the rate was served, how late, and what the node was busy with."""
    load, served = run["load"], run["load"]["rate"]
    failed = load["non_2xx"] + sum(load["errors"].values())
    text = "%s of the %s requests a second that were asked for, half of them within %s and 99 %% within %s; %s." % (
        "all" if served >= 0.99 * run["rate"] else "**%s**" % whole(served), whole(run["rate"]), time_text(load["percentiles"].get("50")),
        time_text(load["percentiles"].get("99")), "**%s failed**" % whole(failed) if failed else "none failed")
    busy = []
    if run["classes"]:
        largest = sorted(((run["classes"]["percent"][name], name) for name in analysis.CLASSES), reverse=True)[:3]
        busy.append("The asked node's CPU went into: " + "; ".join("%s, %.0f %%" % (name.replace("network, ", "network for "), share) for share, name in largest))
    top = run["top"]["cpu"]
    if top and top["total"] and top["rows"]:
        what, value = top["rows"][0]
        busy.append("The largest share of one function has `%s`, %.0f %%" % (cell(what), 100 * value / top["total"]))
    return " ".join([text] + [sentence + "." for sentence in busy])


def missing(run, kind):
    """Why there is no capture of a kind; None if there is one."""
    note = run["captures"].get(kind, {})
    return next(iter(note["missing"].values())) if note.get("status") != 200 else None


def picture(run, kind, folder=""):
    """The picture of a kind, with a link to its page."""
    shown = next((name for name in ("%s.png" % kind, "%s.svg" % kind) if name in run["files"]), None)
    page = "%s.html" % kind if "%s.html" % kind in run["files"] else shown
    if not shown:
        reason = missing(run, kind) or run["captures"].get(kind, {}).get("missing", {}).get("%s.svg" % kind, "there is no picture of it.")
        return "%s: not available: %s\n" % (KIND_NAMES[kind], reason)
    return "[![%s, %s](%s)](%s)\n" % (KIND_NAMES[kind], title(run), folder + shown, folder + page)


def top_text(run, kind):
    """Which functions have the largest shares."""
    top = run["top"][kind]
    if top is None:
        return "Not available: %s\n" % (missing(run, kind) or run["captures"][kind]["missing"].get(
            "%s.pb.gz" % kind, "the capture cannot be read."))
    if not top["total"]:
        return "Nothing%s.\n" % (" on the data cores" if kind == "offcpu" else ": the capture has no samples")
    requests = run["window"]["requests"]
    rows = []
    for what, value in top["rows"]:
        row = ["`%s`" % cell(what), "%.1f %%" % (100 * value / top["total"]), amount(value, top["unit"])]
        if kind == "alloc":
            row.append("%.0f" % (value / requests) if requests else "–")
        rows.append(row)
    head = {"cpu": ["function itself", "share", "CPU"], "alloc": ["allocated below", "share", "bytes", "bytes a request"],
            "lock": ["what, and where", "share", "waited"], "offcpu": ["thread, why, below", "share", "off the CPU"]}[kind]
    notes = "In all %s." % amount(top["total"], top["unit"])
    if kind == "offcpu":
        notes = ("In all %s on the data cores, waiting for requests left out; *preempted* means that other threads had the processor. All other "
                 "threads: %s, which is mostly sleep until there is work.") % (amount(top["total"], top["unit"]), amount(top["background"], top["unit"]))
    if kind == "alloc":
        own = amount(top["profiler"], top["unit"])
        each = " %.0f bytes a request," % (top["total"] / requests) if requests else ""
        notes = "In all %s,%s without %s that captures and counters took while this report asked for them." % (
            amount(top["total"], top["unit"]), each, own)
    caption = {"cpu": "Functions by their own CPU", "alloc": "Functions below which most is allocated", "lock": "What was waited for most",
               "offcpu": "Why the data cores were off the CPU"}[kind]
    return table(caption, head, rows) + "\n" + notes + "\n"


def class_value(classes, name):
    return "%.1f %%" % classes["percent"][name]


def classes_note(run):
    classes = run["classes"]
    return "Segments out: %s HTTP, %s exchange; in: %s HTTP, %s exchange. Samples of %s of CPU, taken by %s" % (
        *(whole(count) for count in classes["segments"]), amount(classes["total"], "nanoseconds"), classes["engine"])


def run_text(run):
    load, cpu = run["load"], run["cpu"]
    parts = ["# %s: %s\n" % (title(run), moment(run["started_at"])), line(run) + ".\n", "In short: %s\n" % conclusion(run),
             "## What was run\n", "    %s\n" % run["command"]]
    parts.append(table("What ran, and where", ["", ""], [list(map(cell, pair)) for pair in machine_lines(run)], left=2))
    parts.append("## What came out\n")
    rows = [["answers", whole(load["requests"])], ["served a second", "%.2f" % load["rate"]]]
    rows += [["p%s" % name, time_text(value)] for name, value in load["percentiles"].items() if name != "100"]
    rows += [["max", time_text(load["max"])], ["not 2xx", of_all(load["non_2xx"], load["requests"])]]
    rows += [["socket errors, %s" % name, whole(count)] for name, count in load["errors"].items()]
    rows += [["CPU of all three nodes, µs a request", "%.2f user + %.2f system" % (cpu["user_us"], cpu["system_us"])],
             ["of it the node that was asked", "%.2f" % cpu["asked_us"]],
             ["the profiler's own, beside that", "%.2f" % cpu["profiler_us"]],
             ["CPU of the load tool", "%.1f s" % run["load_cpu_s"]]]
    parts.append(table("What the load tool and the system counted", ["", run["tool"] if run["tool"] == "wrk2" else "koltso bench"], rows))
    parts.append("Latencies count from when a request was due. The captures ran meanwhile, so their cost is in these figures.\n")
    for kind in KIND_NAMES:
        note = run["captures"].get(kind, {})
        span = "" if missing(run, kind) else ": %d s from second %.0f on" % (note["seconds"], note["at"])
        parts.append("## %s%s\n" % (KIND_NAMES[kind], span))
        parts.append(picture(run, kind))
        if kind == "cpu":
            parts.append(table("What the asked node's CPU was for", ["class", "share"], [[name, class_value(run["classes"], name)] for name in analysis.CLASSES])
                         if run["classes"] else "")
            parts.append(classes_note(run) + "\n" if run["classes"] else "")
        parts.append(top_text(run, kind))
    parts.append("## Files\n")
    parts.append("\n".join("- [%s](%s): %s" % (name, name, FILES.get(name, "the picture of %s.svg" % name[:-4])) for name in run["files"]) + "\n")
    absent = [(name, why) for note in run["captures"].values() for name, why in note["missing"].items()]
    if absent:
        parts.append("\n".join("- `%s`: not available: %s" % pair for pair in absent) + "\n")
    return "\n".join(part for part in parts if part)


# ---- all runs


def summary(arguments):
    out = arguments.out
    runs = []
    for name in sorted(os.listdir(out)):
        path = os.path.join(out, name, "run.json")
        if not os.path.isfile(path):
            continue
        with open(path) as file:
            try:
                runs.append(json.load(file))
            except ValueError as error:
                sys.stderr.write("%s is left out: %s.\n" % (path, error))
    if not runs:
        fail("There is no run in %s; scripts/report.sh makes them." % out)
    sets = {}
    for run in runs:
        sets.setdefault(run["set"], []).append(run)
    newest, *older = sorted(sets, reverse=True)
    if not os.path.exists(os.path.join(out, "CONCLUSIONS.md")):
        write(out, "CONCLUSIONS.md", CONCLUSIONS)
    write(out, "README.md", summary_text(sets[newest], [sets[name] for name in older], read(out, "CONCLUSIONS.md")))


def comparison(runs):
    rows = []
    for run in runs:
        before = BEFORE.get(run["run"])
        if before:
            rate, p50, p99, most, bad, answers, timeouts = before
            rows.append([title(run), "Java", whole(rate), time_text(p50), time_text(p99), time_text(most), of_all(bad, answers), whole(timeouts)])
        load = run["load"]
        rows.append(["[%s](%s/README.md)" % (title(run), run["name"]), "**Koltso**", whole(load["rate"]), time_text(load["percentiles"].get("50")),
                     time_text(load["percentiles"].get("99")), time_text(load["max"]), of_all(load["non_2xx"], load["requests"]),
                     whole(load["errors"]["timeout"])])
    return table("Koltso beside the Java implementation", ["run", "system", "served/s", "p50", "p99", "max", "non-2xx", "timeouts"], rows, left=2)


def summary_text(runs, older, conclusions):
    first = runs[0]
    standard = all(run[name] == value for run in runs for name, value in STANDARD.items())
    parts = ["# Load reports\n",
             "Made by `scripts/report.sh`: a cluster of three nodes on one machine, a constant rate of requests at its first node, and what that node "
             "was doing meanwhile. Each folder has a run: its text, the load tool's output, flame graphs to click through (`*.html`), pictures, and "
             "profiles for `go tool pprof`.\n",
             "## What follows from it\n",
             "\n".join("- **%s**: %s" % (title(run), conclusion(run)) for run in runs) + "\n",
             conclusions.strip() + "\n", "(Below the list: written by people, in [CONCLUSIONS.md](CONCLUSIONS.md).)\n",
             "## The runs of %s, tag %s\n" % (moment(first["set"]), first["tag"]),
             table("What ran, and where", ["", ""], [list(map(cell, pair)) for pair in machine_lines(first) if pair[0] not in ("Load average before", "Meanwhile")], left=2),
             "Load: `%s` with %s; captures ran during each run.\n" % (arguments_text(first), "wrk2" if first["tool"] == "wrk2" else "koltso bench"),
             "## Beside the system it replaces\n",
             "The Java implementation of the same service was measured with `wrk2 -t4 -c64 -R10000 -d1m` on a laptop, where latencies of tens of "
             "seconds say that it served a third of what was asked. %s\n" % (
                 "Koltso: the same arguments; the machine is above." if standard else
                 "**These runs of Koltso have other arguments (`%s`), so they are no comparison.**" % arguments_text(first)),
             comparison(runs)]
    rows = [[title(run), "%.2f" % run["cpu"]["user_us"], "%.2f" % run["cpu"]["system_us"], "%.2f" % run["cpu"]["asked_us"],
             "%.0f %%" % run["others_percent"], "%.0f %%" % run["steal_percent"]] for run in runs]
    parts.append(table("CPU of each run, and what else took some", ["run", "user, µs a request", "system", "of both, asked node", "others meanwhile", "steal"], rows))
    parts.append("CPU of all three nodes, without the profiler's threads; `others` and `steal` are per cent of one processor.%s\n" % (
        " wrk2 waits in whole milliseconds, rounded up, and counts that as latency: up to 1 ms of each is its own." if first["tool"] == "wrk2" else ""))
    parts.append("## Where the CPU goes\n")
    parts.append(classes_text(runs))
    parts += ["### The rule\n", RULE + "\n"]
    parts.append("## What the node was doing\n")
    for run in runs:
        parts.append("### %s\n" % title(run))
        folder = run["name"] + "/"
        for kind in KIND_NAMES:
            parts.append("**%s**\n" % KIND_NAMES[kind])
            parts.append(picture(run, kind, folder))
    for heading, kinds in (("What allocates", ["alloc"]), ("What waits", ["lock", "offcpu"])):
        parts.append("## %s\n" % heading)
        for run in runs:
            for kind in kinds:
                parts.append("**%s%s**\n" % (title(run), "" if len(kinds) == 1 else ": " + KIND_NAMES[kind]))
                parts.append(top_text(run, kind))
    if older:
        parts.append("## Earlier runs\n")
        for runs in older:
            parts.append("%s, tag %s, `%s`, %s:\n" % (moment(runs[0]["set"]), runs[0]["tag"], arguments_text(runs[0]),
                                                    "wrk2" if runs[0]["tool"] == "wrk2" else "koltso bench"))
            rows = [["[%s](%s/README.md)" % (title(run), run["name"]), line(run)] for run in runs]
            parts.append(table("Runs of %s" % moment(runs[0]["set"]), ["run", "what came out"], rows, left=2))
    return "\n".join(parts)


def classes_text(runs):
    there = [run for run in runs if run["classes"]]
    if not there:
        return "Not available: %s\n" % (missing(runs[0], "cpu") or "the capture cannot be read.")
    rows = [[name] + [class_value(run["classes"], name) for run in there] for name in analysis.CLASSES]
    rows.append(["CPU time of the samples"] + [amount(run["classes"]["total"], "nanoseconds") for run in there])
    engines = {run["classes"]["engine"].split(";")[0].rstrip(".") + "." for run in there}
    return table("What the asked node's CPU was for", ["share of the asked node's CPU"] + [title(run) for run in there], rows) + "\nTaken by %s\n" % " ".join(sorted(engines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("check")
    command.set_defaults(run=check)
    command.add_argument("--out", required=True)
    command.add_argument("--folder", required=True)
    command.add_argument("--runs", type=int, required=True)
    command.add_argument("--data-mib", type=int, required=True)
    command.add_argument("--port", type=int, default=0)
    command = commands.add_parser("run")
    command.set_defaults(run=one_run)
    command.add_argument("folder")
    command.add_argument("facts", nargs="*")
    command = commands.add_parser("summary")
    command.set_defaults(run=summary)
    command.add_argument("out")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit("%s." % error)
