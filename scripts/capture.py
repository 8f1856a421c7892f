#!/usr/bin/env python3
"""Captures one node's profiles while it is under load, for scripts/report.sh.

    scripts/capture.py during --port 1337 --cpu 12,20 --off-cpu 35,10 --into FOLDER    # AT,SECONDS from now
    scripts/capture.py formats --port 1337 --into FOLDER                               # the same captures as pages and pictures
    scripts/capture.py cpu PID...                                                      # what the processes used so far, as JSON

`during` takes CPU, allocations and locks at the same time, the heap after them, then off-CPU time.
At the beginning and the end of the first it also takes the sockets of the machine and the node's
metrics. The formats are requested later, because making them takes CPU.

Nothing here is fatal: what a node cannot give (another version, no privilege) is noted in
FOLDER/captures.json with the node's own sentence, and everything else goes on. Bounds: each answer
may take the time of its capture and a minute, and have 64 MiB.
"""

import argparse
import collections
import concurrent.futures
import glob
import http.client
import json
import os
import subprocess
import sys
import time

# Files of a capture that are requested again by its number, with the format and the beginning of
# the media type.
PICTURES = {"svg": ("svg", "image/svg")}
PAGE = {"html": ("html", "text/html")}
HEATMAP = {"html": ("heatmap", "text/html")}
PPROF = {"pb.gz": ("pprof", "application/octet-stream")}

Kind = collections.namedtuple("Kind", "query first formats")  # first: the file that the capture itself is answered with
KINDS = {
    "cpu": Kind("profile?seconds={seconds}&hz=499", "pb.gz", HEATMAP | PICTURES),
    "alloc": Kind("heatmap?event=allocs&seconds={seconds}", "html", PPROF | PICTURES),
    "lock": Kind("block?seconds={seconds}", "pb.gz", PAGE | PICTURES),
    "heap": Kind("heap", "pb.gz", {}),
    "offcpu": Kind("offcpu?seconds={seconds}", "pb.gz", PAGE | PICTURES),
    "stalls": Kind("stalls", "txt", {}),
}
BODY_MAX = 64 << 20
GRACE_SECONDS = 60  # names of a cold kernel and formats take seconds on a busy machine
# Threads of a node that work for its captures only.
PROFILER_THREADS = ("koltso-capture", "koltso-profiler")


def ask(port, path, seconds):
    """Returns (status, headers, body); status 0 and a sentence if there was no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(BODY_MAX + 1)
        if len(body) > BODY_MAX:
            return 0, {}, b"The answer is larger than 64 MiB."
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body
    except (OSError, http.client.HTTPException) as error:
        return 0, {}, ("The node did not answer: %s." % (error or type(error).__name__)).encode()
    finally:
        connection.close()


def sentence(status, body):
    lines = body.decode(errors="replace").split("\n")
    said = lines[0].strip() or "no reason was given."
    return said if status == 0 else "%d, %s" % (status, said)


def write(folder, name, body):
    with open(os.path.join(folder, name), "wb") as file:
        file.write(body)


def capture(port, folder, name, seconds):
    """Makes a capture, whose first file goes to the folder; returns the note about it."""
    kind = KINDS[name]
    path = "/debug/pprof/" + kind.query.format(seconds=seconds)
    begun = time.monotonic()
    status, headers, body = ask(port, path, seconds + GRACE_SECONDS)
    note = {"asked": path, "seconds": seconds, "took": round(time.monotonic() - begun, 3), "status": status, "missing": {}}
    file = "%s.%s" % (name, kind.first)
    if status == 200:
        note["id"] = headers.get("x-koltso-capture")
        write(folder, file, body)
    else:
        note["missing"][file] = sentence(status, body)
    return note


def snapshot(port, folder, moment):
    """The sockets and the node's own counters."""
    with open(os.path.join(folder, "ss." + moment), "w") as file:
        try:
            subprocess.run(["ss", "-tinpOH"], stdout=file, stderr=subprocess.DEVNULL, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            sys.stderr.write("ss failed: %s\n" % error)
    status, _, body = ask(port, "/metrics", 10)
    write(folder, "metrics." + moment, body if status == 200 else b"")
    return time.monotonic()


def only_stalls_since(path, moment):
    """Keeps only those lines of a list of stalls that belong to this run: a node lists them from its start on."""
    if not os.path.exists(path):
        return
    with open(path) as file:
        # A line begins with the time in UTC; one that does not says that there were no stalls.
        lines = [line for line in file if line[:1].isdigit() and line[:len(moment)] >= moment]
    with open(path, "w") as file:
        file.write("".join(lines) or "No turn of a core took longer than --stall-bound during this run.\n")


def during(arguments):
    begun, moment = time.monotonic(), time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    wait = lambda until: time.sleep(max(begun + until - time.monotonic(), 0))
    port, folder = arguments.port, arguments.into
    (cpu_at, cpu_seconds), (off_at, off_seconds) = arguments.cpu, arguments.off_cpu
    notes = {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=5) as pool:
        def start(name, seconds):
            notes[name] = pool.submit(capture, port, folder, name, int(seconds)), time.monotonic() - begun
        wait(cpu_at)
        before = snapshot(port, folder, "before")
        for name in ("cpu", "alloc", "lock"):
            start(name, cpu_seconds)
        wait(cpu_at + cpu_seconds)
        window = snapshot(port, folder, "after") - before
        start("heap", 0)
        wait(off_at)
        start("offcpu", off_seconds)
        wait(off_at + off_seconds)
        start("stalls", 0)
    captures = {name: dict(made.result(), at=round(at, 1)) for name, (made, at) in notes.items()}
    if captures["stalls"]["status"] == 200:
        only_stalls_since(os.path.join(folder, "stalls.txt"), moment)
    with open(os.path.join(folder, "captures.json"), "w") as file:
        json.dump({"window_seconds": window, "captures": captures}, file, indent=1)


def formats(arguments):
    path = os.path.join(arguments.into, "captures.json")
    with open(path) as file:
        document = json.load(file)
    for name, note in document["captures"].items():
        for suffix, (form, media) in KINDS[name].formats.items():
            file = "%s.%s" % (name, suffix)
            if note["status"] != 200:
                note["missing"][file] = next(iter(note["missing"].values()))
                continue
            if not note.get("id"):
                note["missing"][file] = "The node did not say the number of the capture, so it cannot be asked for again."
                continue
            target = "/debug/pprof/captures?id=%s&format=%s" % (note["id"], form)
            status, headers, body = ask(arguments.port, target, GRACE_SECONDS)
            if status != 200:
                note["missing"][file] = sentence(status, body)
            elif not headers.get("content-type", "").startswith(media):
                note["missing"][file] = "The node does not give a capture that is kept as %s." % form
            else:
                write(arguments.into, file, body)
    with open(path, "w") as file:
        json.dump(document, file, indent=1)


def cpu(arguments):
    """{process: {"all": clock ticks user and system, "threads": {number: the same, for those that are no profiler's}}}"""
    used = {}
    for pid in arguments.pids:
        threads = {}
        for task in glob.glob("/proc/%d/task/*" % pid):
            try:
                name, ticks = stat(task)
            except OSError:
                continue  # it has ended meanwhile
            if name not in PROFILER_THREADS:
                threads[os.path.basename(task)] = ticks
        used[pid] = {"all": stat("/proc/%d" % pid)[1], "threads": threads}
    json.dump(used, sys.stdout)


def stat(folder):
    with open(folder + "/stat", errors="replace") as file:
        head, _, rest = file.read().rpartition(") ")
    fields = rest.split()  # from the third on
    return head.split(" (", 1)[1], [int(fields[11]), int(fields[12])]


def main():
    def pair(text):
        at, seconds = map(float, text.split(","))
        return at, seconds
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("during", during), ("formats", formats)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--port", type=int, required=True)
        command.add_argument("--into", required=True)
        if run is during:
            command.add_argument("--cpu", type=pair, required=True)
            command.add_argument("--off-cpu", type=pair, required=True)
    command = commands.add_parser("cpu")
    command.set_defaults(run=cpu)
    command.add_argument("pids", type=int, nargs="+")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit("%s." % error)
