"""The requests that every client and every proxy makes, and the answers that are right.

One table for all: a client program only knows how to send a request (see run.py), so that what is
expected stands in one place. The steps are made in order, over the connections that the client
keeps, and each finds what those before it have stored. What only some clients can send says so in
`needs`.
"""

import dataclasses
import gzip
import re
from urllib.parse import quote_from_bytes

MIB = 1 << 20
TAG = "{tag}"  # in a header: the ETag of the step with `keeps_tag`

# What a step may need of a client; run.py says which client lacks which. (`expect-no`: to take a refusal instead of a 100.)
ABILITIES = ("chunked", "expect", "expect-no", "host", "http10", "star", "get-body", "close", "part")


@dataclasses.dataclass(frozen=True)
class Step:
    """A request, and its answer."""

    says: str
    method: str
    target: str
    status: int
    headers: tuple = ()
    body: bytes | None = None
    chunked: bool = False
    answer: bytes | None = None  # the exact body
    decoded: bytes | None = None  # what a client that decodes codings gives instead
    has: tuple = ()  # (name, pattern) that a header's value matches whole; None: there is none
    keeps_tag: bool = False
    node: str = "usual"  # or "small", which holds 1 MiB of bodies
    needs: frozenset = frozenset()


def entity(key, more=""):
    key = key if isinstance(key, bytes) else key.encode()
    return f"/v0/entity?id={quote_from_bytes(key, safe='')}{more}"


def pattern(length):
    """Bytes that differ from place to place."""
    block = bytes(range(251)) * 1024
    return (block * (length // len(block) + 1))[:length]


SIXTEEN = pattern(16 * MIB)
OCTETS = ("content-type", "application/octet-stream")
SENTENCE = ("content-type", "text/plain.*")
TAGGED = ("etag", r'"[0-9a-f]{16}-[0-9a-f]{4}"')


def put(says, key, value, *, more="", chunked=False, needs=(), headers=(), **rest):
    needs = frozenset(needs) | ({"chunked"} if chunked else set())
    return Step(
        says, "PUT", entity(key, more), rest.pop("status", 201), headers, value, chunked, needs=needs, **rest
    )


def get(says, key, status=200, *, more="", method="GET", **rest):
    return Step(says, method, entity(key, more), status, rest.pop("headers", ()), needs=frozenset(rest.pop("needs", ())), **rest)


def refused(says, method, target, status, headers=(), body=None, *, chunked=False, needs=(), **rest):
    """A request whose answer is one sentence."""
    needs = frozenset(needs) | ({"chunked"} if chunked else set())
    has = rest.pop("has", ()) + (SENTENCE, ("x-content-type-options", "nosniff"))
    return Step(says, method, target, status, headers, body, chunked, has=has, needs=needs, **rest)


def values():
    """Values of all sizes and keys of all bytes."""
    yield put("a PUT", "a", b"value", has=(TAGGED,), keeps_tag=True)
    yield get("a GET", "a", answer=b"value", has=(TAGGED, OCTETS, ("cache-control", "no-cache"), ("content-length", "5")))
    yield get("a HEAD says what GET says", "a", method="HEAD", answer=b"", has=(TAGGED, OCTETS, ("content-length", "5")))
    yield get("ack and from", "a", more="&ack=1&from=1", answer=b"value")
    yield put("an empty value", "empty", b"")
    yield get("an empty value comes back", "empty", answer=b"", has=(("content-length", "0"),))
    yield put("an empty value in chunks", "empty-chunked", b"", chunked=True)
    yield get("an empty value in chunks comes back", "empty-chunked", answer=b"", needs=["chunked"])
    yield put("1 MiB and 3 bytes in chunks", "chunked", pattern(MIB + 3), chunked=True)
    yield get("1 MiB and 3 bytes in chunks come back", "chunked", answer=pattern(MIB + 3), needs=["chunked"])
    yield put("16 MiB", "large", SIXTEEN)
    yield get("16 MiB come back", "large", answer=SIXTEEN, has=(("content-length", str(16 * MIB)),))
    yield put("16 MiB in chunks", "large-chunked", SIXTEEN, chunked=True)
    yield get("HEAD of 16 MiB", "large-chunked", method="HEAD", has=(("content-length", str(16 * MIB)),), needs=["chunked"])
    yield put("a value with a ttl", "ttl", b"soon gone", more="&ttl=3600000")
    yield get("a value with a ttl is there", "ttl", answer=b"soon gone")
    for first in range(0, 256, 32):
        key = b"bytes/" + bytes(range(first, first + 32))
        yield put(f"a key with the bytes from {first}", key, key)
        yield get(f"the key with the bytes from {first}", key, answer=key)


def ranges_of_keys():
    """Records in the order of their keys."""
    records = {f"list/{number}": f"value {number}".encode() for number in range(5)}
    for key, value in records.items():
        yield put(f"a record of the range, {key}", key, value)
    listed = b"".join(key.encode() + b"\n" + value for key, value in records.items())
    yield Step("a range", "GET", "/v0/entities?start=list%2F&end=list0", 200, answer=listed)
    yield Step("a range with a limit", "GET", "/v0/entities?start=list/1&limit=1", 200, answer=b"list/1\nvalue 1")
    yield Step("an empty range", "GET", "/v0/entities?start=none/&end=none0", 200, answer=b"")
    yield Step("HEAD of a range", "HEAD", "/v0/entities?start=list/", 200, answer=b"")


def deletes():
    yield put("a value to be deleted", "gone", b"value")
    yield get("DELETE", "gone", 202, method="DELETE", answer=b"")
    yield get("a deleted key", "gone", 404)
    yield get("HEAD of a deleted key", "gone", 404, method="HEAD", answer=b"")
    yield get("DELETE of what never was", "never", 202, method="DELETE")


def conditions():
    yield put("the value of the conditions", "a", b"value", keeps_tag=True)
    has_tag = (("etag", re.escape(TAG)),)
    yield get("If-None-Match of the tag", "a", 304, headers=(("If-None-Match", TAG),), answer=b"", has=has_tag)
    yield get("If-None-Match among others", "a", 304, headers=(("If-None-Match", f'"x", W/{TAG}'),), answer=b"")
    yield get("If-None-Match of another", "a", headers=(("If-None-Match", '"x"'),), answer=b"value")
    yield get("HEAD with If-None-Match", "a", 304, method="HEAD", headers=(("If-None-Match", "*"),))
    yield get("If-Match of the tag", "a", headers=(("If-Match", TAG),), answer=b"value")
    yield get("If-Match of another", "a", 412, headers=(("If-Match", '"x"'),))
    for method, name, value in [("PUT", "If-Match", TAG), ("PUT", "If-None-Match", "*"), ("DELETE", "If-Match", TAG)]:
        body = b"not to be stored" if method == "PUT" else None
        yield refused(f"{method} with {name}", method, entity("a"), 501, ((name, value),), body)
    yield get("nothing was done under a condition", "a", answer=b"value", headers=(("If-Match", TAG),))


def parts():
    """Ranges of a value."""
    yield put("the value of the ranges", "part", b"0123456789", keeps_tag=True)
    for text, part, where in [("0-3", b"0123", "0-3"), ("-3", b"789", "7-9"), ("8-", b"89", "8-9"), ("4-99", b"456789", "4-9")]:
        has = (("content-range", f"bytes {where}/10"), ("accept-ranges", "bytes"))
        needs = () if text == "8-" else ["part"]
        yield get(f"bytes={text}", "part", 206, headers=(("Range", f"bytes={text}"),), answer=part, has=has, needs=needs)
    has = (("content-range", r"bytes \*/10"),)
    yield get("a range behind the value", "part", 416, headers=(("Range", "bytes=10-"),), has=has)
    yield get("two ranges", "part", headers=(("Range", "bytes=0-1,3-4"),), answer=b"0123456789")
    yield get("a range that is none", "part", headers=(("Range", "lines=1-2"),), answer=b"0123456789")
    both = (("Range", "bytes=1-2"), ("If-Range", TAG))
    yield get("If-Range of the tag", "part", 206, headers=both, answer=b"12", needs=["part"])
    both = (("Range", "bytes=1-2"), ("If-Range", '"x"'))
    yield get("If-Range of another", "part", headers=both, answer=b"0123456789")
    yield put("the value of the large range", "large", SIXTEEN)
    wanted = (("Range", f"bytes={MIB}-{9 * MIB - 1}"),)
    yield get("8 MiB from the middle", "large", 206, headers=wanted, answer=SIXTEEN[MIB : 9 * MIB], needs=["part"])


def representations():
    """Content types and codings."""
    text = "текст".encode()
    kind = "text/plain; charset=utf-8"
    yield put("a value with a type", "typed", text, headers=(("Content-Type", kind),))
    yield get("a type comes back", "typed", answer=text, has=(("content-type", kind),))
    yield get("HEAD of a type", "typed", method="HEAD", has=(("content-type", kind),))
    coded = gzip.compress(pattern(5000), mtime=0)
    both = (("Content-Type", "text/x-coded"), ("Content-Encoding", "gzip"))
    yield put("a value with a coding", "coded", coded, headers=both)
    has = (("content-type", "text/x-coded"),)
    yield get("a coded value comes back", "coded", answer=coded, decoded=pattern(5000), has=has)
    too_long = (("Content-Type", "x/" + "y" * 126),)
    yield refused("a type of 128 bytes", "PUT", entity("typed"), 400, too_long, b"x")


def refusals():
    """What the server says no to, most of it before it has read the body."""
    six, too_large = pattern(6 * MIB), pattern(16 * MIB + 1)
    asks = (("Expect", "100-continue"),)
    yield put("the value of the refusals", "a", b"value")
    yield refused("no id with 6 MiB", "PUT", "/v0/entity?id=", 400, (), six)
    yield refused("no id with 6 MiB in chunks", "PUT", "/v0/entity?id=", 400, (), six, chunked=True)
    yield get("the session goes on after a 400", "a", answer=b"value")
    yield refused("16 MiB and a byte", "PUT", entity("a"), 413, (), too_large)
    yield refused("16 MiB and a byte in chunks", "PUT", entity("a"), 413, (), too_large, chunked=True)
    yield refused("16 MiB and a byte after asking", "PUT", entity("a"), 413, asks, too_large, needs=["expect", "expect-no"])
    yield get("the session goes on after a 413", "a", answer=b"value")
    yield put("16 MiB after asking", "large", SIXTEEN, headers=asks, needs=["expect"])
    yield refused(
        "12 MiB where there is room for 1", "PUT", entity("a"), 503, (), pattern(12 * MIB), node="small", has=(("retry-after", "1"),)
    )
    yield Step("health of a full node", "GET", "/health", 200, node="small")
    yield get("a key that is absent", "absent", 404, has=(SENTENCE,))
    has = (("allow", "GET, HEAD, PUT, DELETE"),)
    yield refused("POST", "POST", entity("a"), 405, (), b"x", has=has)
    yield refused("PATCH with 6 MiB", "PATCH", entity("a"), 405, (), six, has=has)
    yield refused("PUT of the status with 6 MiB", "PUT", "/status", 405, (), six, has=(("allow", "GET.*"),))
    yield refused("17 KiB of header", "GET", entity("a"), 431, (("X-Long", "y" * 17 * 1024),))
    yield refused("a path that is none", "GET", "/v0/nothing", 400)
    yield refused("a parameter that is none", "GET", entity("a", "&akc=3"), 400)
    yield refused("a parameter that is wrong", "GET", entity("a", "&ack=2"), 400)
    yield refused("a key of 4097 bytes", "GET", entity("k" * 4097), 400)
    yield refused("PUT of a part", "PUT", entity("a"), 400, (("Content-Range", "bytes 5-6/7"),), b"xx")
    yield refused("a page of another site", "GET", entity("a"), 403, (("Sec-Fetch-Site", "cross-site"),))
    yield refused("another host", "GET", entity("a"), 403, (("Host", "evil.example"),), needs=["host"])
    yield refused("a host that is none", "GET", entity("a"), 400, (("Host", "u@h"),), needs=["host"])
    yield refused("another host of the status", "GET", "/status", 403, (("Host", "evil.example"),), needs=["host"])
    yield get("nothing was written by what was refused", "a", answer=b"value")


def others():
    """Paths beside the keys."""
    yield Step("OPTIONS", "OPTIONS", "/v0/entity", 204, has=(("allow", "GET, HEAD, PUT, DELETE.*"),))
    yield Step("OPTIONS *", "OPTIONS", "*", 204, has=(("allow", ".+"),), needs=frozenset({"star"}))
    yield Step("health", "GET", "/health", 200, has=(("cache-control", "no-store"),))
    for path in ("/status", "/metrics", "/debug/pprof/"):
        yield Step(f"GET {path}", "GET", path, 200)
        yield Step(f"HEAD {path}", "HEAD", path, 200, answer=b"")
    ends = (("Connection", "close"),)
    yield get("Connection: close", "a", answer=b"value", headers=ends, needs=["close"])
    yield get("GET with a body", "a", answer=b"value", body=b"ignored", needs=["get-body"])
    yield Step("HTTP/1.0", "GET", entity("a"), 200, answer=b"value", needs=frozenset({"http10"}))
    yield Step("PUT over HTTP/1.0", "PUT", entity("old"), 201, body=b"old", needs=frozenset({"http10"}))
    listed = b"list/4\nvalue 4"
    yield Step("a range over HTTP/1.0", "GET", "/v0/entities?start=list/4&end=list/5", 200, answer=listed, needs=frozenset({"http10"}))


PARTS = (values, ranges_of_keys, deletes, conditions, parts, representations, refusals, others)


def steps():
    """All steps, in order."""
    return [step for part in PARTS for step in part()]


def wrong(step, tag, status, headers, body):
    """What is wrong with an answer; None if nothing is. `headers` has names in lower case."""
    if status != step.status:
        return f"{status} instead of {step.status}: {body[:200]!r}"
    if step.answer is not None and body not in (step.answer, step.decoded):
        return f"a body of {len(body)} bytes instead of {len(step.answer)}: {body[:60]!r}"
    if step.method != "HEAD" and SENTENCE in step.has and not re.fullmatch(rb"[^\n]{10,}\.\n", body):
        return f"not one sentence: {body[:200]!r}"
    if step.method == "HEAD" and body:
        return f"HEAD has a body of {len(body)} bytes"
    for name, expected in step.has:
        value = headers.get(name)
        if expected is None and value is not None:
            return f"{name}: {value}"
        if expected is not None and not (value is not None and re.fullmatch(expected.replace(re.escape(TAG), re.escape(tag)), value)):
            return f"{name}: {value} instead of {expected}"
    return None
