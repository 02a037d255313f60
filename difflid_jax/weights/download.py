"""Fetching a large file so that a dropped connection costs only what was not yet there.

The bytes go to `<name>.part` and go on from there, in the same run or in a later one; the file gets its name
only after its size and, where it is known, its SHA-256 have been verified.
"""

import hashlib
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm import tqdm

_PIECE = 1 << 20
_TIMEOUT_SECONDS = 30


def fetch(
    url: str,
    path: str | os.PathLike,
    *,
    size: int | None = None,
    sha256: str | None = None,
    attempts: int = 5,
    pause: float = 1.0,
    progress: bool = True,
) -> str:
    """Download `url` to `path` unless it is there already; the SHA-256 of the file.

    `size` and `sha256` are what the file must have, where known. A dropped connection is taken up again
    after `pause` seconds (doubled each time) up to `attempts` times without progress.
    Raises ConnectionError, leaving the part for a later run, where the connection fails for good, and
    ValueError where the server or the file is not what it should be.
    """
    path = Path(path)
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url}: expected an http or https address")
    if path.exists():
        return _verified(path, path, size, sha256, progress)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)

    failures, identity = 0, None
    while True:
        before = _bytes_in(part)
        try:
            identity, complete = _take_up(url, part, size, identity, progress)
            if complete:
                break
            reason: object = "the connection was closed early"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in (408, 429):
                raise ValueError(f"{url}: the server answers {error.code} {error.reason}") from error
            reason = f"the server answers {error.code} {error.reason}"
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        failures = 0 if _bytes_in(part) > before else failures + 1
        if failures >= attempts:
            raise ConnectionError(
                f"{url}: {reason}; run the same again to go on from the {_bytes_in(part):,} bytes in {part}"
            )
        time.sleep(pause * 2**failures)
    digest = _verified(part, path, size, sha256, progress)
    os.replace(part, path)
    return digest


def sha256_of(path: str | os.PathLike, *, progress: bool = False) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    path = Path(path)
    with (
        path.open("rb") as file,
        tqdm(
            total=path.stat().st_size, unit="B", unit_scale=True, desc="checking", disable=not progress
        ) as bar,
    ):
        while piece := file.read(4 * _PIECE):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()


def _take_up(
    url: str, part: Path, size: int | None, identity: str | None, progress: bool
) -> tuple[str | None, bool]:
    """Go on with `part` until the connection ends: (the version at the server, whether all is there)."""
    have = _bytes_in(part)
    if size is not None and have == size:
        return identity, True
    if size is not None and have > size:
        part.unlink()
        have = 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "difflid_jax", "Accept-Encoding": "identity"}
    )
    if have:
        request.add_header("Range", f"bytes={have}-")
        # Another file under the same address starts anew, rather than being glued to the old one's beginning.
        if identity and not identity.startswith("W/"):
            request.add_header("If-Range", identity)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        # "Range not satisfiable": the part is as long as the file, or is not of this file at all.
        if error.code == 416 and have and size is None:
            error.close()
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return identity, True
            part.unlink()
            return None, False
        raise
    with response:
        start = _first_byte(response) if response.status == 206 else 0
        if start not in (0, have):
            raise ValueError(f"{url}: the server sends from byte {start:,} where {have:,} was asked for")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdecimal() else None
        if size is not None and total is not None and total != size:
            raise ValueError(f"{url}: expected a file of {size:,} bytes, the server offers {total:,}")
        bound = size if size is not None else total
        free = shutil.disk_usage(part.parent).free
        if bound is not None and bound - start > free:
            raise ValueError(f"{part.parent}: {bound - start:,} bytes to fetch, {free:,} are free")
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(
                total=bound, initial=start, unit="B", unit_scale=True, desc="fetching", disable=not progress
            ) as bar,
        ):
            got = start
            for piece in _pieces(response):
                got += len(piece)
                if bound is not None and got > bound:
                    raise ValueError(f"{url}: the server sends more than the {bound:,} bytes it should")
                file.write(piece)
                bar.update(len(piece))
    # Without any size, the end of the stream is all there is to go by.
    return response.headers.get("ETag"), bound is None or got == bound


def _pieces(response: HTTPResponse) -> Iterator[bytes]:
    while piece := response.read1(_PIECE):
        yield piece


def _first_byte(response: HTTPResponse) -> int:
    said = response.headers.get("Content-Range", "")
    start = said.removeprefix("bytes ").split("-")[0]
    if not start.isdecimal():
        raise ValueError(f"{response.url}: the server answers with a part it does not name ({said!r})")
    return int(start)


def _verified(file: Path, name: Path, size: int | None, sha256: str | None, progress: bool) -> str:
    found = file.stat().st_size
    if size is not None and found != size:
        raise ValueError(f"{file}: expected {size:,} bytes, found {found:,}; remove it and fetch it again")
    digest = sha256_of(file, progress=progress)
    if sha256 is not None and digest != sha256:
        if file != name:
            file.unlink()
        raise ValueError(
            f"{name}: expected SHA-256 {sha256}, found {digest}; "
            + ("remove it and fetch it again" if file == name else "it was removed: fetch it again")
        )
    return digest


def _bytes_in(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
