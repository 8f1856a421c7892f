"""Makes the requests of cases.py through one proxy after the other. check-proxies.sh calls it.

Each proxy has Debian's default settings and the lines that the README names. Its answers have to be
those of the node itself, but for what the proxy decides on its own (OWN below). Then come what a
proxy is good at breaking: refusals of large bodies over and over, a client that says more after the
request that closes, a value that changes behind a cache, pipelined requests, a health check. One line
is printed for each proxy. Exit code 1: an answer was wrong; 2: it could not begin.
"""

import contextlib
import pathlib
import shutil
import socket
import sys
import tempfile
import time

import cases
import http_client
import server

MODULES = "mpm_event authn_core authz_core reqtimeout deflate filter mime setenvif env headers proxy proxy_http".split()

# Answers that a proxy gives by itself, or requests that it changes: the step and the status then.
OWN = {
    "direct": {},
    # `Host` becomes the address of the node, unless a line says otherwise; so it does with Apache.
    "nginx": {
        "another host": 200,
        "another host of the status": 200,
        "a host that is none": 200,
        "OPTIONS *": 400,
        "17 KiB of header": 400,
    },
    "haproxy": {"17 KiB of header": 400},
    # A condition or a range is heeded by Varnish itself, which asks for the whole value.
    "varnish": {
        "17 KiB of header": 400,
        "If-None-Match among others": 200,
        "HEAD with If-None-Match": 200,
        "If-Match of another": 200,
        "two ranges": 416,
        "a range that is none": 416,
    },
    "apache": {
        "another host": 200,
        "another host of the status": 200,
        "a host that is none": 400,
        "OPTIONS *": 200,
        "17 KiB of header": 400,
        "two ranges": 206,
    },
}
OWN["nginx, kept"] = OWN["nginx"]
# These reset a connection that has said more after the request that closes, whatever is behind them.
RESETS = ("nginx", "nginx, kept", "haproxy", "varnish")
KEEPS = ("nginx, kept", "haproxy", "varnish", "apache")


def nginx(folder, ports, kept=False):
    """The file that Debian installs, and `client_max_body_size`; if `kept`, connections to the node
    are kept, too."""
    servers = ""
    for front, back in ports:
        upstream = f"upstream n{back} {{ server 127.0.0.1:{back}; keepalive 16; }}\n" if kept else ""
        lines = 'proxy_http_version 1.1; proxy_set_header Connection "";' if kept else ""
        # (With a name for the node, that would be the Host.)
        lines += f" proxy_set_header Host 127.0.0.1:{back};" if kept else ""
        to = f"n{back}" if kept else f"127.0.0.1:{back}"
        servers += f"""{upstream}server {{
            listen 127.0.0.1:{front} default_server; server_name _; client_max_body_size 0;
            location / {{ proxy_pass http://{to}; {lines} }}
        }}\n"""
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(f"""
        worker_processes auto; pid {folder}/pid; error_log {folder}/error.log; daemon off;
        events {{ worker_connections 768; }}
        http {{
            sendfile on; tcp_nopush on; types_hash_max_size 2048;
            include /etc/nginx/mime.types; default_type application/octet-stream;
            access_log {folder}/access.log; gzip on; {temporary}
            {servers}
        }}""")
    return ["nginx", "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]


def haproxy(folder, ports):
    """The defaults of Debian's file, and the default check."""
    sections = "".join(
        f"""
frontend f{front}
    bind 127.0.0.1:{front}
    default_backend b{front}
backend b{front}
    option httpchk
    server node 127.0.0.1:{back} check inter 100ms
"""
        for front, back in ports
    )
    errors = "".join(f"    errorfile {code} /etc/haproxy/errors/{code}.http\n" for code in (400, 403, 408, 500, 502, 503, 504))
    (folder / "haproxy.cfg").write_text(
        "global\n    log stderr local0 notice\ndefaults\n    log global\n    mode http\n    option httplog\n    option dontlognull\n"
        f"    timeout connect 5000\n    timeout client 50000\n    timeout server 50000\n{errors}{sections}"
    )
    return ["haproxy", "-db", "-f", f"{folder}/haproxy.cfg"]


def varnish(folder, ports):
    """Debian's file with the node as the backend; a second address goes to the second node."""
    (usual, _), (small, _) = ports
    backends = "".join(
        f'backend {name} {{ .host = "127.0.0.1"; .port = "{back}"; }}\n' for name, (_, back) in zip(("default", "small"), ports)
    )
    choice = "sub vcl_recv { if (local.socket == \"small\") { set req.backend_hint = small; } }\n"
    (folder / "default.vcl").write_text(f"vcl 4.1;\n{backends}{choice}")
    return ["varnishd", "-j", "none", "-F", "-n", folder / "varnish", "-a", f"usual=127.0.0.1:{usual}", "-a", f"small=127.0.0.1:{small}",
            "-f", f"{folder}/default.vcl", "-s", "malloc,256m"]  # fmt: skip


def apache(folder, ports):
    """The modules and settings of Debian's files, and `ProxyPass`."""
    modules = "".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n" for name in MODULES)
    settings = "".join(f"Include /etc/apache2/mods-available/{name}.conf\n" for name in ("mpm_event", "reqtimeout", "deflate", "mime"))
    hosts = "".join(f"Listen 127.0.0.1:{front}\n" for front, _ in ports)
    hosts += "".join(
        f"<VirtualHost 127.0.0.1:{front}>\n    ServerName localhost\n    ProxyPass / http://127.0.0.1:{back}/\n</VirtualHost>\n"
        for front, back in ports
    )
    # (As root it needs a user for its workers.)
    (folder / "apache2.conf").write_text(
        f"DefaultRuntimeDir {folder}\nPidFile {folder}/pid\nTimeout 300\nKeepAlive On\nMaxKeepAliveRequests 100\nKeepAliveTimeout 5\n"
        f"ErrorLog {folder}/error.log\nServerName localhost\nUser www-data\nGroup www-data\n{modules}{settings}{hosts}"
    )
    return ["apache2", "-DFOREGROUND", "-f", f"{folder}/apache2.conf"]


PROXIES = {
    "direct": None,
    "nginx": nginx,
    "nginx, kept": lambda folder, ports: nginx(folder, ports, kept=True),
    "haproxy": haproxy,
    "varnish": varnish,
    "apache": apache,
}
PROGRAMS = {"nginx": "nginx nginx-light", "haproxy": "haproxy haproxy", "varnish": "varnishd varnish", "apache": "apache2 apache2"}


def ask(port, step, tag=""):
    headers = {name: value.replace(cases.TAG, tag) for name, value in step.headers}
    version = "1.0" if "http10" in step.needs else "1.1"
    url = f"http://127.0.0.1:{port}/{step.target.removeprefix('/')}"
    status, given, body = http_client.send(step.method, url, version, step.chunked, step.body, headers)
    return status, {name.lower(): value for name, value in given}, body


def matrix(ports, own):
    tag = ""
    for step in cases.steps():
        try:
            answer = ask(ports[step.node], step, tag)
        except Exception as error:
            http_client.kept.clear()
            yield f"{step.says}: {type(error).__name__}: {error}"
            continue
        expected = own.get(step.says)
        why = None if answer[0] == expected else cases.wrong(step, tag, *answer)
        if why:
            yield f"{step.says} ({step.method} {step.target[:60]}): {why}"
        elif step.keeps_tag:
            tag = answer[1].get("etag", "")


def again(ports, rounds):
    """Refusals of large bodies, each over a connection of its own, by a client that writes all of
    its request before it reads."""
    names = ("no id with 6 MiB", "16 MiB and a byte", "12 MiB where there is room for 1", "16 MiB and a byte in chunks")
    steps = [step for step in cases.refusals() if step.says in names]
    for step in steps:
        lost = []
        for number in range(rounds):
            http_client.kept.clear()
            try:
                answer = ask(ports[step.node], step)
                why = cases.wrong(step, "", *answer)
            except OSError as error:
                why = repr(error)
            if why:
                lost.append(f"round {number}: {why}")
        if lost:
            yield f"{step.says}: {len(lost)} of {rounds} wrong: {lost[0]}"


def raw(port, *pieces, pause=0.05):
    """What comes back for some bytes, with a pause before each further piece."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(pause)
            connection.sendall(piece)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(1 << 16):
                received += piece
        return received


def manners(ports, rounds, resets):
    """What is more than a request and its answer."""
    port = ports["usual"]
    value = cases.pattern(cases.MIB)
    ask(port, cases.put("a value", "closes", value))
    request = f"GET {cases.entity('closes')} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    cut = sum(not raw(port, request, b"\r\n").endswith(value) for _ in range(rounds))
    if cut and not resets:
        yield f"1 MiB that closes, and CR LF behind the request: {cut} of {rounds} cut"
    http_client.kept.clear()  # what has been idle for that long may have been closed
    stale = 0
    for number in range(rounds):
        text = f"value {number}".encode()
        ask(port, cases.put("a value", "changes", text))
        stale += any(ask(port, cases.get("a value", "changes"))[2] != text for _ in range(3))
    if stale:
        yield f"a value that changes: {stale} of {rounds} answers were old"
    ask(port, cases.put("a value", "a", b"value"))
    one = f"GET {cases.entity('a')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    last = one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    if raw(port, one * 4 + last).count(b"HTTP/1.1 200") != 5:
        yield "five pipelined requests do not get five answers"
    if b" 200 " not in raw(port, f"GET {cases.entity('a')} HTTP/1.0\r\n\r\n".encode()):
        yield "HTTP/1.0 without Host"


def check(name, make, program, rounds):
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # for workers that are not root
        nodes = [
            stack.enter_context(server.node(program, f"{folder}/usual")),
            stack.enter_context(server.node(program, f"{folder}/small", "--max-in-flight-bytes", "1MiB", "--threads", "1")),
        ]
        fronts = nodes
        if make:
            fronts = [server.free_port() for _ in nodes]
            command = [str(part) for part in make(folder, list(zip(fronts, nodes)))]
            stack.enter_context(server.daemon(command, fronts[1], folder / "log"))
        ports = dict(zip(("usual", "small"), fronts))
        http_client.kept.clear()
        before = server.metric(nodes[0], "koltso_connections_accepted_total")
        wrong = list(matrix(ports, OWN[name]))
        connections = int(server.metric(nodes[0], "koltso_connections_accepted_total") - before)
        wrong += again(ports, rounds)
        wrong += manners(ports, rounds, name in RESETS)
        if make and "is DOWN" in (folder / "log").read_text(errors="replace"):
            wrong.append("the proxy's check of the node failed")
    requests = len(cases.steps())
    if name in KEEPS and connections > requests / 2:
        wrong.append("connections to the node are not kept")
    verdict = f"{len(wrong)} WRONG" if wrong else "all as without a proxy" if make else "all right"
    print(f"{name}: {requests} requests over {connections} connections to the node, refusals {rounds} times: {verdict}", flush=True)
    for why in wrong:
        print(f"  {why}")
    return bool(wrong)


def main(program, rounds):
    failed = skipped = 0
    for name, make in PROXIES.items():
        tool, package = PROGRAMS.get(name.split(",")[0], "true coreutils").split()
        if shutil.which(tool) is None:
            print(f"SKIPPED: {name} (the Debian package {package})", flush=True)
            skipped += 1
            continue
        failed += check(name, make, program, int(rounds))
    print(f"{len(PROXIES) - skipped - 1} proxies checked, {failed} with a fault, {skipped} skipped")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
