"""requests, with one session."""

import driver
import requests

session = requests.Session()
session.trust_env = False


def send(method, url, version, chunked, body, headers):
    data = driver.chunks(body) if chunked else body
    answer = session.request(method, url, data=data, headers=headers, timeout=60)
    return answer.status_code, answer.headers.items(), answer.content


driver.serve(send)
