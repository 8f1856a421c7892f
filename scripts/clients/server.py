"""Servers of Koltso and other processes for the checks: each in its own session, on a free port,
and ended by its id."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time


def fail(sentence):
    """What is wrong before the first request."""
    print(sentence, file=sys.stderr)
    sys.exit(2)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def end(process, within=20):
    """SIGTERM, and SIGKILL to what does not end by it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(within)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def watchdog(process, seconds):
    """Kills a process if the block takes longer."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def node(program, data, *flags):
    """The port of a node that serves."""
    process = subprocess.Popen(
        [program, "serve", "--listen", "127.0.0.1:0", "--data", data, *flags], stderr=subprocess.PIPE, text=True
    )
    lines = []
    try:
        ready = None
        while ready is None and (line := process.stderr.readline()):
            lines.append(line)
            ready = re.search(r"ready http://127\.0\.0\.1:(\d+)", line)
        if ready is None:
            fail("The node did not start: " + "".join(lines))
        reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
        reader.start()
        yield int(ready[1])
        if process.poll() is not None:
            fail(f"The node has ended with {process.returncode}: " + "".join(lines[-20:]))
    finally:
        end(process)


@contextlib.contextmanager
def daemon(command, port, log):
    """A process that listens at a port, and its children."""
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        until = time.monotonic() + 30
        while not listens(port):
            if process.poll() is not None or time.monotonic() > until:
                fail(f"{command[0]} does not listen: {open(log, errors='replace').read()[-2000:]}")
            time.sleep(0.05)
        yield process
    finally:
        end(process)
        # Workers that have outlived it are in its session, of which it was the leader.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def metric(port, name):
    """The sum of a metric of a node."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))
