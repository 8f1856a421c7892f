"""http.client of Python's standard library, with one connection for each server as long as it lasts."""

import http.client
from urllib.parse import urlsplit

import driver

kept = {}


def send(method, url, version, chunked, body, headers):
    parts = urlsplit(url)
    connection = kept.get(parts.netloc) or kept.setdefault(parts.netloc, http.client.HTTPConnection(parts.netloc, timeout=60))
    connection._http_vsn, connection._http_vsn_str = (10, "HTTP/1.0") if version == "1.0" else (11, "HTTP/1.1")
    target = url[len(f"http://{parts.netloc}") :].removeprefix("/*")
    target = target or "*"
    if chunked:
        connection.request(method, target, driver.chunks(body), {**headers, "Transfer-Encoding": "chunked"}, encode_chunked=True)
    else:
        connection.request(method, target, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.getheaders(), answer.read()


if __name__ == "__main__":
    driver.serve(send)
