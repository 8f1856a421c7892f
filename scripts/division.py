#!/usr/bin/env python3
"""Says what the CPU of a Koltso cluster was spent on, from captures of its nodes and two snapshots of their sockets.

    koltso profile http://127.0.0.1:1337 --hz 499 --out cpu-0.pb.gz          # of each node, at the same time
    koltso profile cpu-0.pb.gz --classes --json >cpu-0.json
    scripts/division.py --nodes 11,12,13 --ports 1337,1338,1339 --before ss.before --after ss.after cpu-0.json cpu-1.json cpu-2.json

--nodes are the processes, the first one being the node that the clients ask; --ports are their HTTP
ports, in that order, with the replica ports 10000 above. The snapshots are of `ss -tinpOH`, from
the beginning and the end of the captures. src/admin/classes.rs says what counts as what; here the
classes that HTTP and exchange share are divided between them, by the rule that
scripts/bench-cluster.sh has above its section `profile`. This prints a table, tab-separated, then
lines `name value` in per cent of all CPU of the cluster without the cost of captures.
scripts/report.py divides the captures of a report by the same rule.
"""

import argparse
import collections
import json
import re
import sys

ROWS = {"HTTP": "HTTP", "storage": "storage", "exchange": "exchange", "coordinator logic": "coordinator", "other": "other"}
MODES = ("user", "kernel")


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
    """HTTP's part of the classes that it shares with the exchange. Only HTTP sends through the ring."""
    def share(http, exchange):
        return http / (http + exchange) if http + exchange else 0.0
    http, exchange = counts[True], counts[False]
    return {"receive": share(http[1], exchange[1]), "turn": share(sum(http), exchange[1])}


def divide(classes, counts):
    """{(class, mode): value} of a node's division, with what is shared given to HTTP and exchange."""
    shares, weight = http_shares(counts), collections.Counter()
    for name, modes in classes.items():
        for mode, value in modes.items():
            if name in shares:
                weight["HTTP", mode] += shares[name] * value
                weight["exchange", mode] += (1 - shares[name]) * value
            else:
                weight[name, mode] += value
    return weight


def main():
    numbers = lambda text: [int(number) for number in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captures", nargs="+")
    parser.add_argument("--nodes", type=numbers, required=True)
    parser.add_argument("--ports", type=numbers, required=True)
    parser.add_argument("--before", required=True)
    parser.add_argument("--after", required=True)
    arguments = parser.parse_args()
    counts = operations(arguments.before, arguments.after, arguments.nodes, arguments.ports)
    weights, samples, turns = [], 0, 0.0  # turns: what of them went to HTTP
    for path, pid in zip(arguments.captures, arguments.nodes):
        with open(path) as file:
            document = json.load(file)
        samples += document["samples"]
        turns += http_shares(counts[pid])["turn"] * sum(document["classes"]["turn"].values())
        weights.append(divide(document["classes"], counts[pid]))

    def total(classes=ROWS.values(), modes=MODES, nodes=weights):
        return sum(weight[name, mode] for weight in nodes for name in classes for mode in modes)

    everything = total()
    if not everything:
        sys.exit("The captures have no sample of the nodes.")
    percent = lambda *what: 100 * total(*what) / everything
    print("class\tuser\tkernel/network\tboth\tof which asked node\tof which the others")
    for name, classes in [(name, [one]) for name, one in ROWS.items()] + [("all", list(ROWS.values()))]:
        columns = [percent(classes, ["user"]), percent(classes, ["kernel"]), percent(classes)]
        columns += [percent(classes, MODES, nodes) for nodes in (weights[:1], weights[1:])]
        print(name + "".join("\t%.1f %%" % column for column in columns))
    print("samples %d" % samples)
    print("exchange %.1f" % percent(["exchange"]))
    print("exchange_at_most %.1f" % (percent(["exchange"]) + 100 * turns / everything))
    print("kernel %.1f" % percent(ROWS.values(), ["kernel"]))
    print("kernel_http %.1f" % percent(["HTTP"], ["kernel"]))
    print("kernel_exchange %.1f" % percent(["exchange"], ["kernel"]))
    print("replica_storage %.4f" % (total(["storage"], MODES, weights[1:]) / max(total(nodes=weights[1:]), 1)))
    http, exchange = counts[arguments.nodes[0]][True], counts[arguments.nodes[0]][False]
    print("segments %d %d %d %d" % (http[0], exchange[0], http[1], exchange[1]))


if __name__ == "__main__":
    main()
