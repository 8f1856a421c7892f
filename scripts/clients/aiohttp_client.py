"""aiohttp, with one session."""

import asyncio

import aiohttp
import driver
from yarl import URL


async def pieces(body):
    for piece in driver.chunks(body):
        yield piece


async def ask(session, method, url, chunked, body, headers):
    data = pieces(body) if chunked else body
    async with session.request(method, URL(url, encoded=True), data=data, headers=headers) as answer:
        return answer.status, answer.headers.items(), await answer.read()


with asyncio.Runner() as runner:

    async def start():
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))

    session = runner.run(start())
    driver.serve(
        lambda method, url, version, chunked, body, headers: runner.run(ask(session, method, url, chunked, body, headers))
    )
    runner.run(session.close())
