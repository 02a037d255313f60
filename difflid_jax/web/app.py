"""The HTTP application behind the page: it restores what it is sent, and keeps nothing.

`POST /restore?name=NAME&strength=S` and `POST /features?name=NAME` take the bytes of a photograph. Each
answers with a stream of parts: one line of JSON, followed by as many bytes as its field `bytes` states.

    progress   done, total: tiles
    before     a JPEG preview, at most 1600 pixels a side
    after      the same of the restored photograph
    photo      the restored file, in its own format and with its metadata; notes: what it could not keep
    map        a PNG of one feature map; title
    error      message: one line about the file
    end

A request that is refused before its file is looked at has a status of 400 or more and one line of text.
"""

import asyncio
import io
import json
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jax.errors import JaxRuntimeError
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from difflid_jax.cli import one_line
from difflid_jax.features.components import components_image
from difflid_jax.images.codecs import encoded
from difflid_jax.images.formats import DECODING_ERRORS
from difflid_jax.images.photos import MAX_PIXELS, Pixels, check_bytes, decode_photo, encode_photo
from difflid_jax.restoration.restorer import Restorer, checked_strength

_HOSTS = ("127.0.0.1", "localhost")
# Requests whose files are in memory at a time: one is restored while the next one arrives.
_PLACES = 2
_SECONDS_BETWEEN_CHUNKS = 60
_PREVIEW_SIDE = 1600
_MOST_PROFILE_BYTES = 1 << 20

_HEADERS = {
    # Nothing but the page itself, and images made by it.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",  # keeps photographs out of the browser's cache on disk
}

Tell = Callable[..., None]


def application(restorer: Restorer, *, max_pixels: int = MAX_PIXELS) -> ASGIApp:
    """The application that restores with `restorer` and refuses photographs of more than `max_pixels`."""
    worker = ThreadPoolExecutor(1, "restorer")
    html = Path(__file__).with_name("page.html").read_text("utf-8")

    async def page(request: Request) -> Response:
        return HTMLResponse(html)

    async def restore(request: Request) -> Response:
        try:
            strength = checked_strength(float(request.query_params.get("strength", 1)))
        except ValueError as error:
            return PlainTextResponse(one_line(error), 400)
        return await answer(request, lambda *file: _restore(restorer, *file, strength))

    async def features(request: Request) -> Response:
        return await answer(request, lambda *file: _features(restorer, *file))

    async def answer(request: Request, work: Callable[[bytes, str, int, Tell], None]) -> Response:
        name = request.query_params.get("name") or "the photograph"
        try:
            data = await _body(request, name, max_pixels)
        except ValueError as error:
            return PlainTextResponse(one_line(error), 413)
        except (ClientDisconnect, TimeoutError):
            return PlainTextResponse("the upload was interrupted or took too long; try again", 408)
        parts = _parts(worker, lambda tell: work(data, name, max_pixels, tell))
        return StreamingResponse(parts, media_type="application/octet-stream")

    routes = [Route("/", page), *(Route(f"/{f.__name__}", f, methods=["POST"]) for f in (restore, features))]
    return LocalOnly(Starlette(routes=routes))


class LocalOnly:
    """Lets only this machine's own page use the application, and bounds what is in memory.

    Host must be this machine, or a foreign name that resolves to 127.0.0.1 could read the answers. The Origin
    of a POST must be the page itself, or any web page could send one.
    """

    def __init__(self, app: ASGIApp):
        self.app = app
        self.places = asyncio.Semaphore(_PLACES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host.rsplit(":", 1)[0] not in _HOSTS:
            refused = "use this page at 127.0.0.1 or localhost"
        elif scope["method"] == "POST" and headers.get("origin") != f"http://{host}":
            refused = "only the page itself may send photographs"
        else:
            refused = None

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if refused:
            await PlainTextResponse(refused, 403)(scope, receive, send_with_headers)
        elif scope["method"] == "POST":
            async with self.places:
                await self.app(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)


async def _body(request: Request, name: str, max_pixels: int) -> bytes:
    """The file. Raises ValueError for a missing or too large size, before anything is read."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        raise ValueError(f"{name}: expected a Content-Length")
    check_bytes(int(length), name, max_pixels)
    chunks, stream = [], request.stream()
    while chunk := await asyncio.wait_for(anext(stream, b""), _SECONDS_BETWEEN_CHUNKS):
        chunks.append(chunk)
    return b"".join(chunks)


class _Gone(Exception):
    """The client no longer waits for the answer."""


async def _parts(worker: ThreadPoolExecutor, work: Callable[[Tell], None]) -> AsyncIterator[bytes]:
    """The events of `work` as they come; it runs in the worker's thread and ends if the client has gone."""
    loop, queue, gone = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

    def tell(part: str, body: bytes = b"", **fields: Any) -> None:
        if gone.is_set():
            raise _Gone
        head = json.dumps({"part": part, **fields, "bytes": len(body)}).encode()
        loop.call_soon_threadsafe(queue.put_nowait, (part, head + b"\n" + body))

    def run() -> None:
        with suppress(_Gone):
            message = _failure(lambda: work(tell))
            if message:
                tell("error", message=message)
            tell("end")

    worker.submit(run)
    part = ""
    try:
        while part != "end":
            part, encoded = await queue.get()
            yield encoded
    finally:
        gone.set()


def _failure(work: Callable[[], None]) -> str:
    """Run `work`; return "" or, in one line, what went wrong."""
    try:
        work()
    except (ValueError, OSError) as error:
        return one_line(error)
    except _Gone:
        raise
    except Exception as error:
        exhausted = isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
        if exhausted or isinstance(error, MemoryError):
            return "out of memory; use a smaller photograph"
        # A defect: one photograph fails, the page keeps working.
        traceback.print_exc(file=sys.stderr)
        return f"an internal error ({type(error).__name__}); the terminal of `difflid serve` shows it"
    return ""


def _restore(
    restorer: Restorer, data: bytes, name: str, max_pixels: int, tell: Tell, strength: float
) -> None:
    photo = decode_photo(data, name, max_pixels=max_pixels)
    profile = _profile(data)
    tell("before", _preview(photo.pixels, profile))
    restored = restorer.restore_pixels(
        photo.pixels, strength, lambda done, total: tell("progress", done=done, total=total)
    )
    tell("after", _preview(restored, profile))
    tell("photo", encode_photo(photo.with_pixels(restored), name), notes=list(photo.notes))


def _features(restorer: Restorer, data: bytes, name: str, max_pixels: int, tell: Tell) -> None:
    photo = decode_photo(data, name, max_pixels=max_pixels)
    times = restorer.facts.get("features", {}).get("times", (None, None))
    for title, t, h in zip(("content", "haze"), times, restorer.maps(photo.pixels), strict=True):
        image = encoded(components_image(h), "PNG")
        shape = "×".join(map(str, h.shape))
        tell("map", image, title=f"{title}: {shape}" if t is None else f"{title}: t = {t}, {shape}")


def _preview(pixels: Pixels, profile: bytes | None) -> bytes:
    """A JPEG of at most 1600 pixels a side."""
    every = max(1, max(pixels.shape[:2]) // (2 * _PREVIEW_SIDE))
    pixels = pixels[::every, ::every]
    pixels = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    return encoded(np.asarray(image), "JPEG", quality=90, icc_profile=profile)


def _profile(data: bytes) -> bytes | None:
    """The colour profile of a file, for its previews; None if there is none that Pillow can read."""
    with suppress(*DECODING_ERRORS), Image.open(io.BytesIO(data)) as image:
        profile = image.info.get("icc_profile")
        return profile if profile and len(profile) <= _MOST_PROFILE_BYTES else None
    return None
