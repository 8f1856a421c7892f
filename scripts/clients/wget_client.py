"""wget, a process for each request."""

import re
import subprocess
import tempfile
from pathlib import Path

import driver


def send(method, url, version, chunked, body, headers):
    with tempfile.TemporaryDirectory() as folder:
        out, data = (Path(folder) / name for name in ("out", "data"))
        out.touch()
        command = ["wget", "--no-config", "--no-proxy", "-q", "-S", "--content-on-error", "--tries=1", "-T", "60"]
        # (It would wait for the body of a 304 until the connection ends.)
        command += ["--no-http-keep-alive"]
        command += ["--max-redirect=0", f"--method={method}", "-O", out]
        if rest := re.fullmatch(r"bytes=(\d+)-", headers.get("Range", "")):
            # wget takes a part only if it has asked for it by itself.
            headers = {name: value for name, value in headers.items() if name != "Range"}
            command += [f"--start-pos={rest[1]}"]
        if body is not None:
            headers = {"Content-Type": "application/octet-stream", **headers}
            data.write_bytes(body)
            command += [f"--body-file={data}"]
        command += [f"--header={name}: {value}" for name, value in headers.items()]
        run = subprocess.run([*command, url], capture_output=True, text=True, encoding="latin-1")
        blocks = re.split(r"^\s*HTTP/1\.\d ", run.stderr, flags=re.MULTILINE)
        if len(blocks) < 2:
            raise OSError(f"wget ended with {run.returncode}: {run.stderr.strip()}")
        status, *lines = blocks[-1].splitlines()
        pairs = [tuple(line.strip().split(": ", 1)) for line in lines if ": " in line]
        # 0: done; 8: a status that says no; 4: the connection failed, perhaps in the middle.
        if run.returncode not in (0, 8):
            raise OSError(f"wget ended with {run.returncode} after {status}")
        return int(status.split()[0]), pairs, b"" if method == "HEAD" else out.read_bytes()


driver.serve(send)
