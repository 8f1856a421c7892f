"""httpx, with one client."""

import driver
import httpx

client = httpx.Client(timeout=60, trust_env=False)


def send(method, url, version, chunked, body, headers):
    content = driver.chunks(body) if chunked else body
    answer = client.request(method, url, content=content, headers=headers)
    return answer.status_code, answer.headers.items(), answer.content


driver.serve(send)
