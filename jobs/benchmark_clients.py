"""Clients of the suite `serving`, in a process of their own: each sends its next question when it has the answer to the last.

    python jobs/benchmark_clients.py URL BODIES --clients 16 --seconds 8     prints one JSON object

Promise: what is counted are the requests sent after the warm-up and before the end, all of them, however late their answers come;
a rate is over the answers that came between those two. A client that is answered 429 waits as long as Retry-After says.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np

PATIENCE_SECONDS = 180.0
CHAT = "/v1/chat/completions"


@dataclass
class Tally:
    statuses: Counter[str] = field(default_factory=Counter)  # of requests that count; "lost" where no answer came
    seconds: list[float] = field(default_factory=list)  # of answers
    answers: int = 0  # that came while it was measured
    tokens: int = 0  # sampled for those
    without_retry_after: int = 0  # 429s that do not say when to come again


async def load(url: str, bodies: list[bytes], clients: int, warm_up: float, seconds: float) -> Tally:
    tally, following = Tally(), itertools.cycle(bodies)
    begin = time.perf_counter() + warm_up
    end = begin + seconds

    async def client(http: aiohttp.ClientSession) -> None:
        while (sent := time.perf_counter()) < end:
            wait = 0.0
            try:
                async with http.post(url + CHAT, data=next(following), headers={"content-type": "application/json"}) as reply:
                    body, status = await reply.read(), reply.status
                    if status == 429:
                        wait = float(reply.headers.get("retry-after", 0))
                        tally.without_retry_after += not wait
            except (aiohttp.ClientError, TimeoutError):
                body, status = b"", 0
            now = time.perf_counter()
            if begin <= sent:
                tally.statuses[str(status or "lost")] += 1
                if status == 200:
                    tally.seconds.append(now - sent)
            if status == 200 and begin <= now < end:
                tally.answers += 1
                tally.tokens += json.loads(body)["usage"]["completion_tokens"]
            await asyncio.sleep(min(wait, max(0.0, end - now)))

    timeout = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("bodies", help="a file with one JSON body a line")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--warm-up", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=8.0)
    args = parser.parse_args()
    bodies = Path(args.bodies).read_bytes().splitlines()
    tally = asyncio.run(load(args.url, bodies, args.clients, args.warm_up, args.seconds))
    shares = np.percentile(tally.seconds, [50, 95, 99]).tolist() if tally.seconds else [0.0, 0.0, 0.0]
    found = {
        "statuses": dict(tally.statuses),
        "requests_per_second": tally.answers / args.seconds,
        "tokens_per_second": tally.tokens / args.seconds,
        "p50": shares[0], "p95": shares[1], "p99": shares[2],
        "slowest": max(tally.seconds, default=0.0),
        "without_retry_after": tally.without_retry_after,
    }  # fmt: skip
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
