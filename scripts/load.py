#!/usr/bin/env python3
"""Fills a Koltso server with numbered keys, fast: several connections, batches of preformatted PUTs, one process.

A connection sends a batch, waits for all its answers, and sends the next; so at most
connections x batch requests are in flight. Every answer is counted, and those other than 201
separately. Exits with 0 if all were 201, 1 otherwise, 2 for wrong arguments. Keys are letters k up
to the size, then eight digits, as scripts/lib.lua makes them; values are letters v, then the number.

    scripts/load.py http://127.0.0.1:1337 --count 3000000 --key-size 8 --value-size 16
"""

import argparse
import selectors
import socket
import sys
import time
from urllib.parse import urlsplit

STATUS_LINE = b"HTTP/1.1 "
SUCCESS = b"HTTP/1.1 201"
RECEIVE_SIZE = 256 * 1024


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--count", type=int, default=100_000, help="number of keys to write (100000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first key (0)")
    parser.add_argument("--key-size", type=int, default=16, help="bytes a key, at least 8 (16)")
    parser.add_argument("--value-size", type=int, default=128, help="bytes a value (128)")
    parser.add_argument("--connections", type=int, default=8, help="connections (8)")
    parser.add_argument("--batch", type=int, default=64, help="PUTs that a connection sends at once (64)")
    parser.add_argument("--ack", type=int, help="replicas that must have confirmed, in a cluster (the server's default)")
    parser.add_argument("--from", type=int, dest="of", help="replicas a key, in a cluster (the server's default)")
    parser.add_argument("--rate", type=float, default=0, help="PUTs a second at most; 0, as unless told, is as fast as it goes")
    parser.add_argument("--timeout", type=float, default=30, help="give up after so many seconds without an answer (30)")
    arguments = parser.parse_args()
    if arguments.key_size < 8 or arguments.first < 0 or arguments.first + arguments.count > 99_999_999:
        parser.error("a key needs at least 8 bytes, and numbers end at 99999999")
    if arguments.connections < 1 or arguments.batch < 1 or arguments.count < 1:
        parser.error("--connections, --batch and --count must be at least 1")
    return arguments


class Formatter:
    """Formats whole batches with one `%`, which is what makes Python fast enough."""

    def __init__(self, host, arguments):
        prefix = b"k" * (arguments.key_size - 8)
        size = arguments.value_size
        replicas = "".join("&%s=%d" % pair for pair in (("ack", arguments.ack), ("from", arguments.of)) if pair[1])
        value = b"v" * max(size - 8, 0) + (b"%%0%dd" % min(size, 8) if size else b"")
        self.digits_modulus = 10 ** min(size, 8)
        self.has_digits = size > 0
        self.one = (
            b"PUT /v0/entity?id=" + prefix + b"%08d" + replicas.encode() + b" HTTP/1.1\r\nHost: " + host.encode()
            + b"\r\nContent-Length: " + str(size).encode() + b"\r\n\r\n" + value
        )
        self.many = {}

    def batch(self, first, count):
        template = self.many.get(count)
        if template is None:
            template = self.many[count] = self.one * count
        numbers = range(first, first + count)
        if not self.has_digits:
            return template % tuple(numbers)
        pairs = [0] * (2 * count)
        pairs[0::2] = numbers
        pairs[1::2] = [number % self.digits_modulus for number in numbers]
        return template % tuple(pairs)


class Connection:
    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.unsent = memoryview(b"")
        self.awaited = 0
        self.tail = b""  # the end of what came, where a status line may be cut in two

    def receive(self):
        """Returns (answers, answers that are 201), or None if the server has closed the connection."""
        data = self.socket.recv(RECEIVE_SIZE)
        if not data:
            return None
        data = self.tail + data
        # Only a complete "HTTP/1.1 201" may be counted, and only once: bytes that may be its
        # beginning wait for the rest.
        end = len(data)
        cut = data.rfind(b"H", max(0, end - len(SUCCESS) + 1))
        if cut >= 0:
            end = cut
        self.tail = data[end:]
        return data.count(STATUS_LINE, 0, end), data.count(SUCCESS, 0, end)


def main():
    arguments = parse_arguments()
    url = urlsplit(arguments.url)
    address = (url.hostname or "127.0.0.1", url.port or 80)
    formatter = Formatter(url.netloc, arguments)
    selector = selectors.DefaultSelector()
    connections = [Connection(address) for _ in range(arguments.connections)]
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)

    next_number, end_number = arguments.first, arguments.first + arguments.count
    answered = succeeded = 0
    started = last_answer = time.monotonic()
    idle = list(connections)
    trouble = None

    def send(connection):
        try:
            sent = connection.socket.send(connection.unsent)
        except BlockingIOError:
            sent = 0
        connection.unsent = connection.unsent[sent:]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        selector.modify(connection.socket, events, connection)

    try:
        while answered < arguments.count:
            now = time.monotonic()
            while idle and next_number < end_number:
                if arguments.rate and (next_number - arguments.first) > (now - started) * arguments.rate:
                    break
                connection = idle.pop()
                count = min(arguments.batch, end_number - next_number)
                connection.unsent = memoryview(formatter.batch(next_number, count))
                connection.awaited = count
                next_number += count
                send(connection)
            for key, events in selector.select(0.001 if arguments.rate else 1):
                connection = key.data
                if events & selectors.EVENT_WRITE:
                    send(connection)
                if not events & selectors.EVENT_READ:
                    continue
                counts = connection.receive()
                if counts is None:
                    raise ConnectionError("the server closed a connection")
                last_answer = time.monotonic()
                answered += counts[0]
                succeeded += counts[1]
                connection.awaited -= counts[0]
                if connection.awaited < 0:
                    raise ConnectionError("the server sent more answers than there were requests")
                if connection.awaited == 0 and not connection.unsent and connection not in idle:
                    idle.append(connection)
            if answered < next_number - arguments.first and time.monotonic() - last_answer > arguments.timeout:
                raise ConnectionError("no answer for %g s" % arguments.timeout)
    except OSError as error:
        trouble = error

    seconds = max(time.monotonic() - started, 1e-9)
    failed = answered - succeeded
    print("%d answers in %.2f s, %.0f PUT/s, %d not 201" % (answered, seconds, answered / seconds, failed))
    if trouble:
        print("stopped early: %s" % trouble, file=sys.stderr)
    for connection in connections:
        connection.socket.close()
    return 1 if failed or trouble else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        print("cannot reach the server: %s" % error, file=sys.stderr)
        sys.exit(1)
