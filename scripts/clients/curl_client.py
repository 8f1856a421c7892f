"""curl, a process for each request."""

import subprocess
import tempfile
from pathlib import Path

import driver


def send(method, url, version, chunked, body, headers):
    with tempfile.TemporaryDirectory() as folder:
        out, head, data = (Path(folder) / name for name in ("out", "head", "data"))
        out.touch()
        command = ["curl", "-q", "-sS", "--globoff", "--path-as-is", "--noproxy", "*", "-m", "60", "-o", out, "-D", head]
        command += ["-I"] if method == "HEAD" else ["-X", method]
        command += ["-0"] if version == "1.0" else []
        # (curl asks by itself before it sends more than 1 MiB; an empty Expect turns that off.)
        lines = {"Expect": "", "Accept": "*/*", **headers}
        if body is not None:
            data.write_bytes(body)
            if chunked:
                lines["Transfer-Encoding"] = "chunked"
            # (With -T, curl 7.88 never ends an empty body in chunks.)
            command += ["--data-binary", f"@{data}"]
            lines = {"Content-Type": "", **lines}
        for name, value in lines.items():
            command += ["-H", f"{name}: {value}" if value else f"{name}:"]
        if url.endswith("/*"):
            command += ["--request-target", "*"]
            url = url.removesuffix("/*")
        subprocess.run([*command, url], check=True, capture_output=True, text=True)
        # An interim answer comes first; what is asked for is the last block.
        block = head.read_bytes().decode("latin-1").strip().split("\r\n\r\n")[-1].split("\r\n")
        pairs = [tuple(line.split(": ", 1)) for line in block[1:] if ": " in line]
        return int(block[0].split()[1]), pairs, b"" if method == "HEAD" else out.read_bytes()


def told(*request):
    try:
        return send(*request)
    except subprocess.CalledProcessError as error:
        raise OSError(f"curl ended with {error.returncode}: {error.stderr.strip()}") from None


driver.serve(told)
