#!/usr/bin/env python3
"""Computes the figures of scripts/bench-profiling.sh from its runs.

    scripts/profiling-figures.py beside overhead|latency <runs     a table, tab-separated
    scripts/profiling-figures.py builds <runs                      a table, tab-separated

Runs are lines, tab-separated, in the order in which they were made: series, label, kind, values. A
series is what was run at one time on one server. In `beside`, each run is compared with the mean of
the nearest two runs of kind `none` before and after it in its series, and the runs of kind `none`
with their own neighbours in the same way: the difference between equal runs is the noise. If the
values of a kind begin with `-`, it was not measured, and what follows says why.
"""

import argparse
import collections
import statistics
import sys

# The goals of each kind: for overhead, per cent more CPU a request; for latency, p99 as a ratio to
# that of the neighbours.
OVERHEAD_MAX = {"99": 1.0, "999": 8.0}
LATENCY_MAX = 1.2
SAMPLING_MAX = 1.0


def median(values):
    return statistics.median(values) if values else float("nan")


def runs(lines):
    """Yields (series, label, kind, values) of each line."""
    for line in lines:
        series, label, kind, *values = line.rstrip("\n").split("\t")
        yield series, label, kind, values


def beside(lines, compared):
    """For all runs: {(label, kind): [(values, [ratio of value i to the neighbours', for i in compared], base)]}, and what was not measured."""
    of_series, found, missing = collections.OrderedDict(), collections.OrderedDict(), {}
    for series, label, kind, values in runs(lines):
        found.setdefault((label, kind), [])
        if values[0] == "-":
            missing[label, kind] = values[1]
        else:
            of_series.setdefault(series, []).append((label, kind, values))
    for made in of_series.values():
        nones = [at for at, (_, kind, _) in enumerate(made) if kind == "none"]
        for at, (label, kind, values) in enumerate(made):
            before = [other for other in nones if other < at][-1:]
            after = [other for other in nones if other > at][:1]
            if kind == "none" and not (before and after):
                found[label, kind].append((values, None, None))
                continue
            near = [made[other][2] for other in before + after]
            base = [statistics.fmean(float(one[i]) for one in near) for i in compared]
            ratios = [float(values[i]) / b if b else float("nan") for i, b in zip(compared, base)]
            found[label, kind].append((values, ratios, base))
    return found, missing


def verdict(middle, most, equal, none=0.0):
    """Judges a middle value by a limit; `equal` are the values of runs without a difference, which should have had `none`."""
    if middle <= most:
        return "yes"
    noise = median([abs(one - none) for one in equal])
    return "within noise" if middle <= none + noise else "no"


def span(values, pattern):
    return "%s to %s" % (pattern % min(values), pattern % max(values)) if values else ""


def overhead(lines):
    # Values: CPU a request in us, of the process without the storage's threads, of all of it, and
    # of the core's thread.
    found, _ = beside(lines, (0, 1, 2))
    print("what", "without, us", "with, us", "more", "rounds", "all threads, more", "rounds", "core's thread, more", "rounds", "wanted", "reached", sep="\t")
    for (label, kind), made in found.items():
        equal = [100 * (r[0] - 1) for _, r, _ in found[label, "none"] if r]
        compared = [one for one in made if one[1]]
        row = ["%s, %s" % (label, "equal slices" if kind == "none" else kind + " Hz")]
        row += ["%.3f" % median([base[0] for _, _, base in compared]), "%.3f" % median([float(values[0]) for values, _, _ in compared])]
        for i in range(3):
            more = [100 * (ratios[i] - 1) for _, ratios, _ in compared]
            row += ["%+.2f %%" % median(more), span(more, "%+.2f")]
        limit = OVERHEAD_MAX.get(kind)
        middle = median([100 * (ratios[0] - 1) for _, ratios, _ in compared])
        row += ["", ""] if limit is None else ["<= %g %%" % limit, verdict(middle, limit, equal)]
        print(*row, sep="\t")


def latency(lines):
    # Values: p50, p99, p99.9 and max in ms, served/s, not 2xx, per cent of others and stolen.
    found, missing = beside(lines, (1,))
    print("what", "capture", "p50, ms", "p99", "p99.9", "max", "served/s", "not 2xx", "p99 to neighbours'", "rounds", "wanted", "reached",
          "others", "stolen", sep="\t")
    for (label, kind), made in found.items():
        if (label, kind) in missing:
            print(label, kind, *[""] * 9, missing[label, kind], sep="\t")
            continue
        columns = list(zip(*[[float(value) for value in values] for values, _, _ in made]))
        row = [label, kind] + ["%.2f" % median(column) for column in columns[:3]]
        row += ["%.2f" % max(columns[3]), "%.0f" % median(columns[4]), "%d" % sum(columns[5])]
        ratios = [ratio[0] for _, ratio, _ in made if ratio]
        row += ["%.2f" % median(ratios), span(ratios, "%.2f")]
        equal = [ratio[0] for _, ratio, _ in found.get((label, "none"), []) if ratio]
        row += ["", ""] if kind == "none" else ["<= %.2f" % LATENCY_MAX, verdict(median(ratios), LATENCY_MAX, equal, 1.0)]
        print(*row, "%.0f %%" % max(columns[6]), "%.0f %%" % max(columns[7]), sep="\t")


def builds(lines):
    """CPU a request of the kinds `sampling` and `plain`, series by series; equal slices of a series show the noise. Values are those of `overhead`."""
    labels = collections.OrderedDict()
    for series, label, kind, values in runs(lines):
        of_kind = labels.setdefault(label, collections.OrderedDict()).setdefault(series, {"plain": [], "sampling": []})
        of_kind[kind].append([float(value) for value in values])
    print("what", "without, us", "with, us", "more", "rounds", "equal slices differ by", "all threads, more", "core's thread, more", "wanted", "reached", sep="\t")
    for label, of_series in labels.items():
        means = [{kind: [statistics.fmean(column) for column in zip(*slices)] for kind, slices in made.items()} for made in of_series.values()]
        more = [[100 * (mean["sampling"][i] / mean["plain"][i] - 1) for mean in means] for i in range(3)]
        equal = []
        for made in of_series.values():
            for slices in made.values():
                costs = [values[0] for values in slices]
                equal.append(100 * (max(costs) - min(costs)) / statistics.fmean(costs))
        print(label, *["%.3f" % median([mean[kind][0] for mean in means]) for kind in ("plain", "sampling")],
              "%+.2f %%" % median(more[0]), span(more[0], "%+.2f"), "%.2f %% (most %.2f)" % (median(equal), max(equal)),
              *["%+.2f %%" % median(more[i]) for i in (1, 2)], "<= %g %%" % SAMPLING_MAX, verdict(median(more[0]), SAMPLING_MAX, equal), sep="\t")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("beside").add_argument("what", choices=("overhead", "latency"))
    commands.add_parser("builds")
    asked = parser.parse_args()
    if asked.command == "beside":
        {"overhead": overhead, "latency": latency}[asked.what](sys.stdin)
    else:
        builds(sys.stdin)


if __name__ == "__main__":
    main()
