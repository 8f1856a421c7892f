#!/usr/bin/env python3
"""Says what the CPU of a Koltso cluster went into, from `perf script` and two snapshots of its sockets.

    perf script -F comm,pid,tid,ip,sym,dso --no-inline >samples
    scripts/fold.py --nodes 11,12,13 --ports 1337,1338,1339 --before ss.before --after ss.after samples

--nodes are the processes, the first one being the node that the clients ask; --ports are their HTTP ports, in that order,
with the replica ports 10000 above. The snapshots are of `ss -tinpOH`, from the begin and the end of the recording.
scripts/bench-cluster.sh has the rule by which samples are divided, above its section `profile`. Prints a table, tab-separated;
then lines `name value` in per cent of all CPU of the cluster. scripts/report.py divides the captures of a report by the same rule.
"""

import argparse
import collections
import re
import sys

CLASSES = ("HTTP", "storage", "exchange", "coordinator logic", "other")

# Of a stack the innermost function that has one of these in its name decides; of such a name the first match does.
NAMES = [
    ("exchange", r"koltso_net::replica|koltso::member|koltso_hints"),
    ("HTTP", r"koltso_net::|koltso::(?:front|admin::(?:status|metrics))\b"),
    ("storage", r"koltso_storage|koltso::node::(?:replica|commit)\b"),
    ("coordinator logic", r"koltso_cluster"),
]
NAME = re.compile("|".join("(%s)" % pattern for _, pattern in NAMES))
STORAGE_THREADS = ("koltso-seal", "koltso-compact", "koltso-sync", "koltso-provisio")
CORE_THREAD = "koltso-core-"
SENDS = {"tcp_sendmsg", "io_send", "io_sendmsg", "io_write", "__sys_sendto", "__sys_sendmsg"}
RECEIVES = {"tcp_recvmsg", "io_recv", "io_recvmsg", "io_read", "__sys_recvfrom", "__sys_recvmsg"}
DIRECT_SENDS = {"__sys_sendto", "__sys_sendmsg"}

HEAD = re.compile(r"^(\S.*?)\s+(\d+)/(\d+)\b")
FRAME = re.compile(r"^\s+[0-9a-f]+ (.*) \((.*)\)$")


def samples(path):
    """Yields (thread's name, process, [(function, is kernel)]), the innermost function first."""
    head, frames = None, []
    with open(path, errors="replace") as lines:
        for line in lines:
            frame = FRAME.match(line)
            if frame:
                in_kernel = frame[2].startswith("[") and frame[2] not in ("[unknown]", "[vdso]")
                frames.append((frame[1], in_kernel))
                continue
            if head and (frames or not line.strip()):
                yield head[1], int(head[2]), frames
                head, frames = None, []
            head = HEAD.match(line) or head
    if head and frames:
        yield head[1], int(head[2]), frames


def class_by_name(frames):
    for function, in_kernel in frames:
        match = None if in_kernel else NAME.search(function)
        if match:
            return NAMES[match.lastindex - 1][0]
    return None


def own_class(thread, frames):
    """The class that the thread or a name decides; None for the work of a core that HTTP and exchange share."""
    found = "storage" if thread.startswith(STORAGE_THREADS) else class_by_name(frames)
    return found if found or thread.startswith(CORE_THREAD) else "other"


def shared_work(frames, shares):
    """Of a sample without a class of its own: (HTTP's share of it, "send", "receive" or "turn")."""
    kernel = {function for function, is_kernel in frames if is_kernel}
    receive, turn = shares
    if kernel & SENDS:
        # (A direct send has our function on its stack, unless the stack was lost.)
        return 0.0 if kernel & DIRECT_SENDS else 1.0, "send"
    if kernel & RECEIVES:
        return receive, "receive"
    return turn, "turn"


def segments(path, nodes, http_ports):
    """Data segments of each socket of the nodes: {(process, is HTTP, addresses): (out, in)}."""
    replica_ports = {port + 10000 for port in http_ports}
    found = {}
    with open(path) as lines:
        for line in lines:
            pid = re.search(r"pid=(\d+)", line)
            ports = re.findall(r"\S+:(\d+)\s", line)[:2]
            if not pid or int(pid[1]) not in nodes or len(ports) < 2:
                continue
            local, peer = map(int, ports)
            if local in http_ports:
                is_http = True
            elif local in replica_ports or peer in replica_ports:
                is_http = False
            else:
                continue
            count = [int(m[1]) if (m := re.search(r"\b%s:(\d+)" % name, line)) else 0 for name in ("data_segs_out", "data_segs_in")]
            found[int(pid[1]), is_http, (local, peer)] = count
    return found


def operations(before_path, after_path, nodes, http_ports):
    """{process: {True (HTTP) or False (exchange): (data segments out, in) between two snapshots}}"""
    before = segments(before_path, nodes, http_ports)
    counts = {pid: {True: [0, 0], False: [0, 0]} for pid in nodes}
    for (pid, is_http, ports), after in segments(after_path, nodes, http_ports).items():
        was = before.get((pid, is_http, ports), (0, 0))
        for i in range(2):
            counts[pid][is_http][i] += max(after[i] - was[i], 0)
    return counts


def http_shares(counts):
    """The share of HTTP in what a node's ring does: (receives, all of it). Through the ring only HTTP sends."""
    def share(http, exchange):
        return http / (http + exchange) if http + exchange else 0.0
    http, exchange = counts[True], counts[False]
    return share(http[1], exchange[1]), share(sum(http), exchange[1])


def main():
    numbers = lambda text: [int(number) for number in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples")
    parser.add_argument("--nodes", type=numbers, required=True)
    parser.add_argument("--ports", type=numbers, required=True)
    parser.add_argument("--before", required=True)
    parser.add_argument("--after", required=True)
    arguments = parser.parse_args()
    nodes, first = arguments.nodes, arguments.nodes[0]
    counts = operations(arguments.before, arguments.after, nodes, arguments.ports)
    shares = {pid: http_shares(counts[pid]) for pid in nodes}

    weight = collections.Counter()  # (class, in the kernel, on the first node) -> samples
    shared = 0.0  # what of the shared work that is neither send nor receive went to HTTP
    total = 0
    replica_storage = replica_total = 0
    for thread, pid, frames in samples(arguments.samples):
        if pid not in shares:
            continue
        total += 1
        in_kernel = bool(frames) and frames[0][1]
        here = pid == first
        found = own_class(thread, frames)
        if not here:
            replica_total += 1
            replica_storage += found == "storage"
        if found:
            weight[found, in_kernel, here] += 1
            continue
        share, kind = shared_work(frames, shares[pid])
        weight["HTTP", in_kernel, here] += share
        weight["exchange", in_kernel, here] += 1 - share
        shared += share if kind == "turn" else 0
    if not total:
        sys.exit("perf took no sample of the nodes.")

    def percent(classes, modes=(False, True), places=(False, True)):
        return 100 * sum(weight[c, m, p] for c in classes for m in modes for p in places) / total

    print("class\tuser\tkernel/network\tboth\tof which asked node\tof which the others")
    for name, classes in [(name, (name,)) for name in CLASSES] + [("all", CLASSES)]:
        columns = [percent(classes, (False,)), percent(classes, (True,)), percent(classes)]
        columns += [percent(classes, places=(here,)) for here in (True, False)]
        print(name + "".join("\t%.1f %%" % column for column in columns))
    print("samples %d" % total)
    print("exchange %.1f" % percent(("exchange",)))
    print("exchange_at_most %.1f" % (percent(("exchange",)) + 100 * shared / total))
    print("kernel %.1f" % percent(CLASSES, (True,)))
    print("kernel_http %.1f" % percent(("HTTP",), (True,)))
    print("kernel_exchange %.1f" % percent(("exchange",), (True,)))
    print("replica_storage %.4f" % (replica_storage / max(replica_total, 1)))
    http, exchange = counts[first][True], counts[first][False]
    print("segments %d %d %d %d" % (http[0], exchange[0], http[1], exchange[1]))


if __name__ == "__main__":
    main()
