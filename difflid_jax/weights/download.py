"""Downloads of large files that resume after a dropped connection and end with a verified SHA-256.

The bytes go to `<name>.part`; the file gets its name only after its size and hash have been verified. The
usual libraries (pooch, `urllib`) would start a 2 GB file over after a dropped connection.
"""

import os
import ssl
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm import tqdm

from difflid_jax.atomic import sha256_of

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
    """Download `url` to `path`, unless it exists, and return the file's SHA-256.

    size, sha256: what the file must have, if known. A dropped connection is resumed after `pause` seconds,
    doubled each time, until `attempts` in a row bring no bytes.
    Raises ConnectionError, keeping the partial file for a later run, if the connection fails for good, and
    ValueError if the server or the file is not as expected.
    """
    path = Path(path)
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url}: expected an http or https address")
    if path.exists():
        return _verified(path, size, sha256)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)

    failures, etag, complete = 0, None, False
    while not complete:
        before = _bytes_in(part)
        reason: object = "the connection was closed early"
        try:
            etag, complete = _resume(url, part, size, etag, progress)
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"the server answers {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                raise ValueError(f"{url}: {reason}") from error
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        failures = 0 if complete or _bytes_in(part) > before else failures + 1
        if failures >= attempts:
            raise ConnectionError(
                f"{url}: {reason}; run the same command again to resume from the {_bytes_in(part):,} bytes "
                f"in {part}"
            )
        if not complete:
            time.sleep(pause * 2**failures)
    try:
        digest = _verified(part, size, sha256)
    except ValueError:
        part.unlink()
        raise
    os.replace(part, path)
    return digest


def _resume(
    url: str, part: Path, size: int | None, etag: str | None, progress: bool
) -> tuple[str | None, bool]:
    """Append to `part` until the connection ends: (the ETag of the file, whether it is complete)."""
    have = _bytes_in(part)
    if size is not None and have >= size:
        if have == size:
            return etag, True
        part.unlink()
        have = 0
    headers = {"User-Agent": "difflid_jax", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        # A file that has changed since is sent from its start, not appended to the old one's beginning.
        if etag and not etag.startswith("W/"):
            headers["If-Range"] = etag
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS
        )
    except urllib.error.HTTPError as error:
        # "Range not satisfiable": the part is as long as the file, or belongs to another file.
        if error.code != 416 or not have or size is not None:
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return etag, True
        part.unlink()
        return None, False
    with response:
        start = _first_byte(response) if response.status == 206 else 0
        if start not in (0, have):
            raise ValueError(f"{url}: the server sends from byte {start:,} instead of byte {have:,}")
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else size
        if size not in (None, total):
            raise ValueError(f"{url}: expected a file of {size:,} bytes, but the server offers {total:,}")
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=not progress) as bar,
        ):
            while piece := response.read1(_PIECE):
                if total is not None and file.tell() + len(piece) > total:
                    raise ValueError(f"{url}: the server sends more than the expected {total:,} bytes")
                file.write(piece)
                bar.update(len(piece))
            # Without a length, the end of the stream is the only sign of a complete file.
            return response.headers.get("ETag"), total in (None, file.tell())


def _first_byte(response: HTTPResponse) -> int:
    given = response.headers.get("Content-Range", "")
    start = given.removeprefix("bytes ").split("-")[0]
    if not start.isdecimal():
        raise ValueError(f"{response.url}: expected a Content-Range with the first byte, found {given!r}")
    return int(start)


def _verified(file: Path, size: int | None, sha256: str | None) -> str:
    name = str(file).removesuffix(".part")
    advice = "download it again" if name != str(file) else "remove it and download it again"
    if size not in (None, found := file.stat().st_size):
        raise ValueError(f"{name}: expected {size:,} bytes, found {found:,}; {advice}")
    digest = sha256_of(file)
    if sha256 not in (None, digest):
        raise ValueError(f"{name}: expected SHA-256 {sha256}, found {digest}; {advice}")
    return digest


def _bytes_in(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
