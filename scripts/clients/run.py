"""Makes the requests of cases.py by one client program after the other. check-clients.sh calls it.

Each argument after the program and the folder is NAME=COMMAND, or NAME=SKIPPED: why. A client
program reads requests and writes answers as lines (driver.py describes them) and judges nothing.
One line is printed for each client. Exit code 1: an answer was wrong; 2: it could not begin.
"""

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import cases
import server

# What a client cannot send, whatever the server does. Everything else it has to manage.
CANNOT = {
    "requests": {"star", "http10"},
    "httpx": {"star", "http10"},
    "aiohttp": {"star", "http10"},
    "fetch": {"star", "http10", "expect", "host", "get-body", "close"},
    "node-http": {"http10"},
    "go": {"star", "http10"},
    # (Up to Java 19, a refusal instead of a 100 leaves the client waiting for ever: JDK-8286171.)
    "java": {"star", "http10", "expect-no"},
    "reqwest": {"star", "http10", "expect"},
    "wget": {"star", "http10", "chunked", "part"},
}
# Client programs give up by themselves after 60 s; one that does not is ended then.
PATIENCE = 90
# A client that keeps its connections needs a new one after each that the server has ended.
PROCESS_A_REQUEST = {"curl", "wget"}


class Client:
    """A client program, and the files of its bodies."""

    def __init__(self, command, folder):
        self.folder = Path(folder)
        self.files = {}
        self.process = subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def file_of(self, body):
        if body is None:
            return "-"
        if body not in self.files:
            self.files[body] = self.folder / f"body-{len(self.files)}"
            self.files[body].write_bytes(body)
        return self.files[body]

    def ask(self, step, url, headers):
        """Status, header lines by name in lower case, and body; or None and what went wrong."""
        out = self.folder / "out"
        out.unlink(missing_ok=True)
        version = "1.0" if "http10" in step.needs else "1.1"
        framing = "chunked" if step.chunked else "length"
        fields = [step.method, url, version, framing, self.file_of(step.body), out]
        fields += [f"{name}: {value}" for name, value in headers]
        if self.process.poll() is not None:
            return None, "the client program has ended"
        print(*fields, sep="\t", file=self.process.stdin, flush=True)
        with server.watchdog(self.process, PATIENCE):
            answer = self.process.stdout.readline().rstrip("\n").split("\t")
        if not answer[0].isdigit():
            return None, " ".join(answer) or f"no answer within {PATIENCE} s"
        lines = (line.partition(": ") for line in answer[1:])
        given = {name.lower(): value for name, _, value in lines}
        return (int(answer[0]), given, out.read_bytes()), None

    def end(self):
        self.process.stdin.close()
        server.end(self.process)


def run(client, ports, cannot):
    """Makes all requests; what was wrong, how many were made, how many the client cannot send."""
    tag, wrong, made, left_out = "", [], 0, 0
    for step in cases.steps():
        if step.needs & cannot:
            left_out += 1
            continue
        made += 1
        headers = [(name, value.replace(cases.TAG, tag)) for name, value in step.headers]
        answer, failure = client.ask(step, f"http://127.0.0.1:{ports[step.node]}/{step.target.removeprefix('/')}", headers)
        why = failure or cases.wrong(step, tag, *answer)
        if why:
            wrong.append(f"{step.says} ({step.method} {step.target[:60]}): {why}")
        elif step.keeps_tag:
            tag = answer[1].get("etag", "")
    return wrong, made, left_out


def main(program, *clients):
    failed = skipped = 0
    for name, command in (client.split("=", 1) for client in clients):
        if command.startswith("SKIPPED: "):
            print(f"{command} (client {name})", flush=True)
            skipped += 1
            continue
        with tempfile.TemporaryDirectory() as folder:
            usual = server.node(program, f"{folder}/usual")
            small = server.node(program, f"{folder}/small", "--max-in-flight-bytes", "1MiB", "--threads", "1")
            with usual as usual_port, small as small_port:
                client = Client(command, folder)
                wrong, made, left_out = run(client, {"usual": usual_port, "small": small_port}, CANNOT.get(name, set()))
                client.end()
                connections = int(server.metric(usual_port, "koltso_connections_accepted_total")) - 1
        if name not in PROCESS_A_REQUEST and connections > made / 2:
            wrong.append(f"{connections} connections for {made} requests: they are not kept")
        verdict = f"{len(wrong)} WRONG" if wrong else "all right"
        print(f"{name}: {made} requests over {connections} connections, {verdict}; it cannot send {left_out} more", flush=True)
        for why in wrong:
            print(f"  {why}")
        failed += bool(wrong)
    print(f"{len(clients) - skipped} clients checked, {failed} with a fault, {skipped} skipped")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
