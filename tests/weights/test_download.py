"""Downloads from a local server that misbehaves in the ways that servers and connections do."""

import hashlib
import http.server
import threading

import numpy as np
import pytest

from difflid_jax.weights.download import fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; each request takes the next of `plan`, the last one again and again."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag = '"one"'
        self.plan = ["whole"]
        self.ranges: list[str | None] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/model.pt"

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        act = server.plan.pop(0) if len(server.plan) > 1 else server.plan[0]
        content, start = server.content, 0
        if isinstance(act, int):
            self.send_error(act)
            return
        wanted = self.headers.get("Range")
        unchanged = self.headers.get("If-Range") in (None, server.etag)
        if wanted and unchanged and act != "no ranges":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            said = start + 7 if act == "wrong part" else start
            self.send_header("Content-Range", f"bytes {said}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", server.etag)
        if act != "no length":
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        self.wfile.write(rest[: len(rest) // 2] if act == "drop" else rest)


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def get(server, path, **known):
    return fetch(server.url, path, pause=0.001, progress=False, **known)


def test_a_connection_that_drops_half_way_is_taken_up_where_it_ended(server, tmp_path):
    server.plan = ["drop", "drop", "whole"]
    path = tmp_path / "new" / "model.pt"
    assert get(server, path, size=len(CONTENT), sha256=SHA256) == SHA256
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=150000-", "bytes=225000-"]
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]


def test_a_later_run_goes_on_with_what_an_earlier_one_left(server, tmp_path):
    path = tmp_path / "model.pt"
    server.plan = ["drop", 503]
    with pytest.raises(ConnectionError, match=r"503 .*resume from the 150,000 bytes in .*model\.pt\.part"):
        get(server, path, attempts=2)
    assert not path.exists()
    server.plan = ["whole"]
    assert get(server, path) == SHA256
    assert server.ranges[-1] == "bytes=150000-"
    assert path.read_bytes() == CONTENT


def test_a_file_that_is_there_is_verified_and_not_fetched(server, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(CONTENT)
    assert get(server, path, size=len(CONTENT), sha256=SHA256) == SHA256
    with pytest.raises(ValueError, match="expected SHA-256 0000"):
        get(server, path, sha256="0" * 64)
    with pytest.raises(ValueError, match="expected 7 bytes, found 300,000"):
        get(server, path, size=7)
    assert server.ranges == [] and path.read_bytes() == CONTENT


def test_a_wrong_hash_is_an_error_and_leaves_no_file(server, tmp_path):
    with pytest.raises(ValueError, match=f"expected SHA-256 {'0' * 64}, found {SHA256}; download it again"):
        get(server, tmp_path / "model.pt", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_size_is_an_error_before_anything_is_fetched(server, tmp_path):
    with pytest.raises(ValueError, match="expected a file of 7 bytes, but the server offers 300,000"):
        get(server, tmp_path / "model.pt", size=7)
    server.plan = ["no length"]
    with pytest.raises(ValueError, match="sends more than the expected 7 bytes"):
        get(server, tmp_path / "model.pt", size=7)


def test_a_part_that_is_complete_or_too_long_is_no_trap(server, tmp_path):
    part = tmp_path / "model.pt.part"
    part.write_bytes(CONTENT)
    assert get(server, tmp_path / "model.pt", size=len(CONTENT)) == SHA256
    assert server.ranges == []
    (tmp_path / "model.pt").rename(part)
    assert get(server, tmp_path / "model.pt") == SHA256
    assert server.ranges == ["bytes=300000-"]
    for known in ({}, {"size": len(CONTENT)}):
        (tmp_path / "model.pt").unlink()
        part.write_bytes(CONTENT + b"more")
        assert get(server, tmp_path / "model.pt", **known) == SHA256


def test_servers_without_ranges_or_lengths_will_do(server, tmp_path):
    server.plan = ["drop", "no ranges"]
    assert get(server, tmp_path / "one.pt", sha256=SHA256) == SHA256
    server.plan = ["no length"]
    assert get(server, tmp_path / "two.pt", sha256=SHA256) == SHA256


def test_a_file_that_changes_between_two_connections_starts_anew(server, tmp_path):
    server.plan = ["drop", "whole"]
    original = Handler.do_GET

    def change_after_first(handler):
        original(handler)
        server.content, server.etag = b"another file" * 20_000, '"two"'

    server.RequestHandlerClass = type("Changing", (Handler,), {"do_GET": change_after_first})
    get(server, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == b"another file" * 20_000


def test_what_cannot_work_is_said_at_once(server, tmp_path):
    server.plan = [404]
    with pytest.raises(ValueError, match=r"model\.pt: the server answers 404"):
        get(server, tmp_path / "model.pt")
    assert len(server.ranges) == 1
    server.plan = ["drop", "wrong part"]
    with pytest.raises(ValueError, match="sends from byte 150,007 instead of byte 150,000"):
        get(server, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="expected an http or https address"):
        fetch("file:///etc/passwd", tmp_path / "x")


def test_no_server_at_all_ends_after_the_attempts(tmp_path, server):
    url = server.url.replace(str(server.server_port), "9")
    with pytest.raises(ConnectionError, match="refused"):
        fetch(url, tmp_path / "x", attempts=2, pause=0.001, progress=False)
