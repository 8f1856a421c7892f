#!/usr/bin/env python3
"""Measures how three nodes on this machine become equal again, and what that costs.

Three nodes with a core each are filled with numbered keys. Then, in this order:

    idle     CPU of a node while all are equal
    one      one key was changed while a node was down, and nobody keeps a hint of it
    percent  so with one key of a hundred, beside a load of --rate requests/s at 2/3 (80 % GET)
    empty    the data folder of a node is emptied, beside the same load, while keys are read by a quorum

A node "has it" when a read with ack=1, for which it asks nobody else, shows the new value. Times count from when the
node is ready. Latencies are those of requests from the same moment on, and those of the same load before.

    scripts/bench-convergence.py --koltso target/release/koltso --keys 3000000 --folder /var/tmp/bench
"""

import argparse
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
NODES = 3
PHASES = ("idle", "one", "percent", "empty")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--koltso", required=True, help="the binary, of a release build")
    parser.add_argument("--keys", type=int, default=1_000_000, help="number of keys (1000000)")
    parser.add_argument("--value-size", type=int, default=1000, help="bytes a value (1000)")
    parser.add_argument("--folder", required=True, help="for the data of the nodes: three copies; it must not exist")
    parser.add_argument("--rate", type=int, default=5000, help="requests/s beside (5000)")
    parser.add_argument("--repair-rate", default="1024GiB", help="what the nodes get (1024GiB)")
    parser.add_argument("--phases", default=",".join(PHASES), help=f"some of {','.join(PHASES)}")
    parser.add_argument("--rounds", type=int, default=3, help="how often each of `one` and `percent` is done (3)")
    return parser.parse_args()


class Node:
    def __init__(self, bench, number, port):
        self.bench, self.number, self.port = bench, number, port
        self.url = f"http://127.0.0.1:{port}"
        self.data = os.path.join(bench.folder, f"node-{number}")
        self.process = None
        self.asking = None

    def start(self):
        a = self.bench.arguments
        command = [a.koltso, "serve", "--listen", f"127.0.0.1:{self.port}", "--node", self.url, "--data", self.data]
        command += ["--cluster", ",".join(node.url for node in self.bench.nodes), "--threads", "1", "--no-pin"]
        command += ["--repair-rate", a.repair_rate]
        log = os.path.join(self.bench.folder, f"log-{self.number}")
        self.log = open(log, "ab+")
        self.said = self.log.seek(0, os.SEEK_END)
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self.log)

    def ready(self):
        """Waits until it serves, and says since when."""
        while self.process.poll() is None:
            self.log.seek(self.said)
            if b"\nready http" in self.log.read():
                return time.monotonic()
            time.sleep(0.02)
        self.log.seek(self.said)
        sys.exit(f"node {self.number} does not start: {self.log.read().decode(errors='replace')[-300:]}")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.log.close()
        self.process = self.asking = None

    def status(self):
        with urllib.request.urlopen(self.url + "/status", timeout=30) as answer:
            return json.load(answer)

    def cpu(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def threads(self):
        """CPU seconds by the names of threads, without their numbers."""
        found = {}
        for thread in os.listdir(f"/proc/{self.process.pid}/task"):
            folder = f"/proc/{self.process.pid}/task/{thread}"
            with open(folder + "/comm") as comm, open(folder + "/schedstat") as stat:
                name = comm.read().strip().rstrip("0123456789-")
                found[name] = found.get(name, 0) + int(stat.read().split()[0]) / 1e9
        return found

    def memory(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))

    def has(self, number, value):
        """Whether this node itself has a value. Costs the node less than a range, which looks at every segment."""
        query = f"id=kkkkkkkk{number:08d}&ack=1&from=3"
        if self.asking is None:
            self.asking = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        self.asking.request("GET", f"/v0/entity?{query}")
        return self.asking.getresponse().read() == value

    def received(self):
        peers = self.status()["cluster"]["peers"]
        return [sum((peer["repair"] or {}).get(what, 0) for peer in peers) for what in ("records_received", "bytes_received")]


class Bench:
    def __init__(self, arguments):
        self.arguments, self.folder = arguments, os.path.abspath(arguments.folder)
        os.makedirs(self.folder)
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(NODES)]
        ports = [s.getsockname()[1] for s in sockets]
        for s in sockets:
            s.close()
        self.nodes = [Node(self, number, port) for number, port in enumerate(ports)]
        self.changed = None

    def say(self, text):
        print(text, flush=True)

    def start(self, nodes):
        """Starts nodes at the same time; they need each other."""
        for node in nodes:
            node.start()
        return max(node.ready() for node in nodes)

    def load(self):
        """Writes all keys, to all replicas."""
        here = os.path.dirname(os.path.abspath(__file__))
        command = [sys.executable, os.path.join(here, "load.py"), self.nodes[0].url, "--count", str(self.arguments.keys)]
        command += ["--key-size", "16", "--value-size", str(self.arguments.value_size), "--ack", "3", "--from", "3"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def change(self, step, text):
        """Gives each `step`th key a new value, with node 2 down."""
        connection = socket.create_connection(("127.0.0.1", self.nodes[0].port))
        value = text.encode().ljust(self.arguments.value_size, b"c")
        numbers = range(0, self.arguments.keys, step)
        for begin in range(0, len(numbers), 64):
            part = numbers[begin : begin + 64]
            head = "PUT /v0/entity?id=kkkkkkkk%08d&ack=2&from=3 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"
            connection.sendall(b"".join((head % (n, len(value))).encode() + value for n in part))
            answers = b""
            while answers.count(b"HTTP/1.1 201") < len(part) or not answers.endswith(b"\r\n\r\n"):
                more = connection.recv(1 << 16)
                answers += more
                if not more or answers.count(b"HTTP/1.1 201") != answers.count(b"HTTP/1.1 "):
                    sys.exit(f"a PUT was answered otherwise: {answers[-300:]!r}")
        connection.close()
        self.changed = numbers, value
        return numbers, value

    def expected(self, number):
        """The value of a key that the load beside does not write, as load.py or the last change made it."""
        if self.changed and number in self.changed[0]:
            return self.changed[1]
        return b"%08d".rjust(self.arguments.value_size - 4, b"v") % number

    def bench(self, seconds):
        """Starts the load, through all nodes."""
        a = self.arguments
        command = [a.koltso, "bench", "-t", "1", "-c", "32", "-R", str(a.rate), "-d", f"{seconds}s", "--warmup", "0s"]
        command += ["--mix", "80:20", "--keys", "100000", "--size", str(a.value_size), "--query", "ack=2&from=3"]
        urls = [node.url for node in self.nodes]
        return subprocess.Popen(command + ["--json", "-T", "10s"] + urls, stdout=subprocess.PIPE)

    def latency(self, process):
        found = json.loads(process.communicate()[0])
        failed = found["non_2xx_3xx"] + sum(found["errors"].values())
        return found["latency_us"]["p50"], found["latency_us"]["p99"], failed

    def wait_settled(self):
        """Until nobody misses anything any more and what was written is sealed."""
        quiet = 0
        before = None
        while quiet < 3:
            time.sleep(1)
            now = sum(node.cpu() for node in self.nodes)
            quiet = quiet + 1 if before is not None and now - before < 0.1 else 0
            before = now

    def differ(self, step, text):
        """Node 2 misses changes that nobody has a hint of; nodes 0 and 1 run again. Without a step, nothing changes."""
        self.nodes[2].kill()
        numbers, value = self.change(step, text) if step else ((), b"")
        for node in self.nodes[:2]:
            node.kill()
            shutil.rmtree(os.path.join(node.data, "hints"), ignore_errors=True)
        self.start(self.nodes[:2])
        self.wait_up(2)
        return numbers, value

    def wait_up(self, count):
        """Until `count` nodes see each other."""
        for node in self.nodes[:count]:
            while sum(peer["state"] == "up" for peer in node.status()["cluster"]["peers"]) < count - 1:
                time.sleep(0.05)

    def await_value(self, number, value, seconds=300):
        end = time.monotonic() + seconds
        while not self.nodes[2].has(number, value):
            time.sleep(0.25)
            if time.monotonic() > end:
                sys.exit(f"key {number} has not come in {seconds} s")

    def idle(self):
        self.wait_settled()
        before, begun = [node.threads() for node in self.nodes], time.monotonic()
        time.sleep(60)
        took = time.monotonic() - begun
        used = {}
        for node, earlier in zip(self.nodes, before):
            for name, seconds in node.threads().items():
                share = (seconds - earlier.get(name, 0)) / took * 100 / NODES
                used[name] = used.get(name, 0) + share
        exchange = sum(used.get(name, 0) for name in ("koltso-repair", "koltso-answer", "koltso-mend"))
        most = sorted(used.items(), key=lambda pair: -pair[1])[:4]
        self.say(f"idle: exchange {exchange:.3f} % of a core a node over 60 s; all threads {sum(used.values()):.3f} %, "
                 f"most {', '.join(f'{name} {share:.3f}' for name, share in most)}")
        self.say(f"anonymous memory: {', '.join(f'{node.memory():.0f}' for node in self.nodes)} MiB")

    def one(self):
        for turn in range(self.arguments.rounds):
            _, value = self.differ(self.arguments.keys, f"one {turn} ")
            begun = self.start(self.nodes[2:])
            self.await_value(0, value)
            self.say(f"one: {time.monotonic() - begun:.1f} s after the node was ready")

    def base(self):
        self.wait_settled()
        found = sorted((self.latency(self.bench(15)) for _ in range(3)), key=lambda l: l[1])
        self.say(f"load alone: p50 {found[1][0]} us, p99 {found[1][1]} us (of {', '.join(str(l[1]) for l in found)}), {found[1][2]} failed")

    def percent(self):
        for turn in range(self.arguments.rounds):
            # A start costs by itself: new segments, caches that are cold.
            self.differ(0, "")
            self.start(self.nodes[2:])
            p50, p99, failed = self.latency(self.bench(15))
            self.say(f"as many restarts, and nothing differs: beside p50 {p50} us, p99 {p99} us, {failed} failed")
            self.wait_settled()
            numbers, value = self.differ(100, f"percent {turn} ")
            begun = self.start(self.nodes[2:])
            beside = self.bench(15)
            # The load writes some of the first 100 000 as well. A few are looked at, and then all: looking costs.
            changed = [n for n in numbers if n >= 100_000] or list(numbers)
            for number in changed[:: max(len(changed) // 20, 1)] + changed[-1:]:
                self.await_value(number, value)
            took = time.monotonic() - begun
            p50, p99, failed = self.latency(beside)
            for number in changed:
                self.await_value(number, value, 1)
            records, moved = self.nodes[2].received()
            least = records * (self.arguments.value_size + 16)
            share = moved / max(least, 1)
            self.say(f"percent: {took:.1f} s; {records} records, {moved} bytes, {share:.3f} x; beside p50 {p50} us, p99 {p99} us, {failed} failed")
            self.wait_settled()

    def empty(self):
        node = self.nodes[2]
        self.wait_settled()
        node.kill()
        shutil.rmtree(node.data)
        begun = self.start([node])
        stop, checked, wrong = threading.Event(), [0], []
        reader = threading.Thread(target=self.read, args=(stop, checked, wrong))
        reader.start()
        windows = []
        while True:
            window = self.bench(10)
            while window.poll() is None and node.status()["standing"] != "whole":
                time.sleep(0.1)
            if node.status()["standing"] == "whole":
                took = time.monotonic() - begun
                windows.append(self.latency(window))
                break
            windows.append(self.latency(window))
        stop.set()
        reader.join()
        worst = max(windows, key=lambda window: window[1])
        self.say(f"empty: whole after {took:.1f} s; beside p99 {', '.join(str(w[1]) for w in windows)} us (windows of 10 s), "
                 f"{sum(w[2] for w in windows)} failed, worst {worst[1]}; {checked[0]} quorum reads, {len(wrong)} wrong {wrong[:3]}")

    def read(self, stop, checked, wrong):
        """Reads keys by a quorum through all nodes; the load writes only the first 100 000."""
        chosen = random.Random(1)
        connections = [socket.create_connection(("127.0.0.1", node.port)) for node in self.nodes]
        while not stop.is_set():
            number = chosen.randrange(min(100_000, self.arguments.keys - 1), self.arguments.keys)
            connection = connections[chosen.randrange(NODES)]
            connection.sendall(f"GET /v0/entity?id=kkkkkkkk{number:08d}&ack=2&from=3 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += connection.recv(1 << 16)
            head, _, body = answer.partition(b"\r\n\r\n")
            length = next(int(l.split(b":")[1]) for l in head.split(b"\r\n") if l.lower().startswith(b"content-length"))
            while len(body) < length:
                body += connection.recv(1 << 16)
            checked[0] += 1
            if b" 200 " not in head.split(b"\r\n")[0] or body != self.expected(number):
                wrong.append((number, head[:60]))
            time.sleep(0.001)

    def run(self):
        phases = self.arguments.phases.split(",")
        self.start(self.nodes)
        self.wait_up(NODES)
        begun = time.monotonic()
        self.load()
        self.say(f"{self.arguments.keys} keys in {time.monotonic() - begun:.0f} s")
        self.wait_settled()
        if "idle" in phases:
            self.idle()
        if "one" in phases:
            self.one()
        if "percent" in phases or "empty" in phases:
            self.base()
        if "percent" in phases:
            self.percent()
        if "empty" in phases:
            self.empty()


def main():
    arguments = parse_arguments()
    bench = Bench(arguments)
    try:
        bench.run()
    finally:
        for node in bench.nodes:
            if node.process:
                node.kill()
        shutil.rmtree(bench.folder)


main()
