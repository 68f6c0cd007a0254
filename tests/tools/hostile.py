"""A web that means harm, on raw TCP: a path answers with whatever bytes it likes, at whatever pace."""

from __future__ import annotations

import asyncio
import functools
import gzip
import io
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from PIL import Image

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


def reply(body: bytes, kind: str = "text/html", status: str = "200 OK", **headers: str) -> bytes:
    """A whole HTTP answer. `headers` with _ for -."""
    lines = {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    return f"HTTP/1.1 {status}\r\n".encode() + "".join(f"{k}: {v}\r\n" for k, v in lines.items()).encode() + b"\r\n" + body


def moved(to: str, status: str = "302 Found") -> bytes:
    return reply(b"", status=status, Location=to, Set_Cookie="a=b; Path=/")


def endless(head: bytes, piece: bytes, pause: float = 0.0) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    return answer


@functools.cache
def bomb(megabytes: int) -> bytes:
    """Zeros in gzip, a thousandth of their size."""
    packer = zlib.compressobj(wbits=31)
    return b"".join([*(packer.compress(bytes(1_000_000)) for _ in range(megabytes)), packer.flush()])


@dataclass
class Hostile:
    """`answers` by path; what is missing is 404. `requests` are those that arrived: path and headers in lower case."""

    host: str = "127.0.0.1"
    port: int = 0
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    connections: int = 0
    _server: asyncio.Server | None = None

    @property
    def root(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode("latin-1").split("\r\n")
            path = head[0].split(" ")[1]
            self.requests.append((path, {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:]) if k}))
            answer = self.answers.get(path, reply(b"nothing here", status="404 Not Found"))
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await asyncio.wait_for(answer(writer), 20)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunk(png: bytes, name: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    return png[:33] + chunk(name, data) + png[33:]


def many_scans(jpeg: bytes, times: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * times + jpeg[-2:]


def packed(body: bytes) -> bytes:
    return gzip.compress(body)
