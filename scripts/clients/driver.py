"""What the client programs in Python share: requests come in as lines, answers go out as lines.

A request is METHOD, URL, VERSION, FRAMING, BODY, OUT and header lines, divided by tabs. BODY and OUT
are files, BODY is `-` for none; FRAMING is `length` or `chunked`. The answer is the status and header
lines, and its body is in OUT; or `FAILED` and why. The programs in other languages speak the same.
"""

import sys
from pathlib import Path


def chunks(body):
    """A body in pieces, so that a library does not know its length."""
    for at in range(0, len(body), 100_000):
        yield body[at : at + 100_000]


def serve(send):
    """Answers each line by `send(method, url, version, chunked, body, headers)`, which returns the
    status, pairs of names and values, and the body."""
    for line in sys.stdin:
        method, url, version, framing, body_file, out, *lines = line.rstrip("\n").split("\t")
        body = None if body_file == "-" else Path(body_file).read_bytes()
        headers = dict(text.split(": ", 1) for text in lines)
        try:
            status, given, answer = send(method, url, version, framing == "chunked", body, headers)
            Path(out).write_bytes(answer)
            print(status, *(f"{name}: {value}" for name, value in given), sep="\t", flush=True)
        except Exception as error:  # whatever the library raises is a finding
            print("FAILED", f"{type(error).__name__}: {error}".replace("\n", " ").replace("\t", " "), sep="\t", flush=True)
