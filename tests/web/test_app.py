"""The application over HTTP, without a browser; test_browser.py has the page."""

import dataclasses
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from absl import flags
from image_samples import XMP, exif_bytes, raw_png, saved, scene
from PIL import Image

from difflid_jax import serve
from difflid_jax.cli import UsageError
from difflid_jax.features.components import components_image
from difflid_jax.images.photos import decode_photo, encode_photo

# 64×64 like most images of the tests, so that a compiled program serves all. It is stored turned.
SIDE = 64
PIXELS = scene(3, height=SIDE, width=SIDE)
JPEG = saved(PIXELS, "JPEG", quality=95, exif=exif_bytes(6, (SIDE, SIDE)), xmp=XMP)


def ask(port, path, body=None, **headers: str):
    """(status, headers, body) of a request as the page sends it, but for `headers`."""
    host = f"127.0.0.1:{port}"
    headers = {"Host": host, "Origin": f"http://{host}"} | headers
    connection = http.client.HTTPConnection(host, timeout=120)
    connection.request("GET" if body is None else "POST", path, body, headers)
    response = connection.getresponse()
    found = response.status, response.headers, response.read()
    connection.close()
    return found


def parts(port, path, body):
    """[(JSON, bytes)] of an answer, without its end."""
    status, _, answer = ask(port, path, body)
    assert status == 200, answer
    found = []
    while answer:
        line, _, answer = answer.partition(b"\n")
        head = json.loads(line)
        found.append((head, answer[: head["bytes"]]))
        answer = answer[head["bytes"] :]
    assert found[-1][0]["part"] == "end"
    return found[:-1]


def only(found, part):
    (one,) = [(head, body) for head, body in found if head["part"] == part]
    return one


@pytest.mark.parametrize("strength", [1, 0.3])
def test_the_download_is_the_file_that_restore_writes(port, restorer, strength):
    photo = decode_photo(JPEG, "a.jpg")
    expected = encode_photo(photo.with_pixels(restorer.restore_pixels(photo.pixels, strength)))
    found = parts(port, f"/restore?name=a.jpg&strength={strength}", JPEG)
    assert [head["part"] for head, _ in found] == ["before", "progress", "after", "photo"]
    assert only(found, "photo")[1] == expected
    shown = np.asarray(Image.open(io.BytesIO(only(found, "before")[1])))
    assert np.abs(shown - photo.pixels.astype(float)).mean() < 3  # upright; a JPEG


def test_previews_of_16_bit_and_features_can_be_shown(port, restorer):
    pixels = scene(3, np.uint16, SIDE, SIDE)
    found = parts(port, "/restore?name=a.png", raw_png(pixels))
    shown = np.asarray(Image.open(io.BytesIO(only(found, "before")[1])))
    assert np.abs(shown - (pixels >> 8).astype(float)).mean() < 3  # JPEG
    maps = parts(port, "/features?name=a.png", raw_png(pixels))
    assert [head["title"][:15] for head, _ in maps] == ["content: t = 0,", "haze: t = 500, "]
    for (_, body), h in zip(maps, restorer.maps(pixels), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), components_image(h))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not an image at all", "a b.jpg: not an image (expected PNG"),
        (b"", "a b.jpg: the file is empty"),
        (JPEG[:400], "a b.jpg: a damaged or truncated JPEG"),
        (raw_png(scene(3), size=(400, 400)), "a b.jpg: 400×400 is 160,000 pixels, more than the limit"),
    ],
)
def test_a_bad_file_gets_the_readers_one_line(port, data, message):
    for path in ("restore", "features"):
        ((head, _),) = parts(port, f"/{path}?name=a%20b.jpg", data)
        assert head["part"] == "error" and head["message"].startswith(message)
        assert "\n" not in head["message"]


def test_requests_are_bounded(port):
    host = f"127.0.0.1:{port}"
    connection = http.client.HTTPConnection(host, timeout=30)
    connection.putrequest("POST", "/restore?name=a.jpg")
    connection.putheader("Origin", f"http://{host}")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    response = connection.getresponse()  # before a byte of the file is sent
    assert response.status == 413 and "a file of 1,000,000,000,000 bytes" in response.read().decode()
    connection.close()
    status, _, answer = ask(port, "/restore?strength=2", JPEG)
    assert status == 400 and b"strength: expected 0" in answer


def test_foreign_pages_cannot_use_it(port):
    for body in (None, JPEG):
        path = "/restore" if body else "/"
        assert ask(port, path, body, Host=f"evil.example:{port}")[0] == 403  # DNS rebinding
        assert ask(port, path, body, Host=f"127.0.0.1.evil.example:{port}")[0] == 403
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{port + 1}"):
        assert ask(port, "/restore", JPEG, Origin=origin)[0] == 403
    assert ask(port, "/", Host=f"localhost:{port}")[0] == 200
    assert ask(port, "/restore", JPEG, Host=f"localhost:{port}", Origin=f"http://localhost:{port}")[0] == 200


def test_the_page_is_one_file_that_may_load_nothing(port):
    status, headers, page = ask(port, "/")
    assert status == 200 and headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["Cache-Control"] == "no-store"
    assert b"http:" not in page and b"https:" not in page and b"src=" not in page


def test_users_at_a_time_get_their_own_photographs(port, restorer):
    found = {}

    def user(number):
        hazy = np.roll(PIXELS, 9 * number, axis=1)
        restored = only(parts(port, "/restore?name=a.png", raw_png(hazy)), "photo")[1]
        found[number] = (decode_photo(restored, "a").pixels, hazy)

    users = [threading.Thread(target=user, args=(number,)) for number in range(6)]
    for each in users:
        each.start()
    for each in users:
        each.join()
    assert len(found) == 6
    for pixels, hazy in found.values():
        np.testing.assert_array_equal(pixels, restorer.restore_pixels(hazy))


def test_a_client_that_leaves_stops_its_restoration_and_a_defect_does_not_stop_the_page(
    serving, restorer, monkeypatch, capfd
):
    tiles, blocked = [], threading.Event()

    class Slow(type(restorer)):
        def restore_pixels(self, pixels, strength, on_tile):
            if len(pixels) == 7:
                raise RuntimeError("a defect")
            for i in range(1000):
                blocked.set()
                tiles.append(i)
                time.sleep(0.01)
                on_tile(i + 1, 1000)

    slow = Slow(**{field.name: getattr(restorer, field.name) for field in dataclasses.fields(restorer)})
    with serving(slow) as port:
        host = f"127.0.0.1:{port}"
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request("POST", "/restore", JPEG, {"Origin": f"http://{host}"})
        assert blocked.wait(60)
        connection.sock.close()
        # One thread restores: it must be free again.
        ((_, _), (head, _)) = parts(port, "/restore", raw_png(scene(3, height=7)))
        assert len(tiles) < 1000
        assert head["part"] == "error" and "an internal error (RuntimeError)" in head["message"]
        assert "a defect" in capfd.readouterr().err


def test_a_port_in_use_is_refused_in_one_line():
    message = r"--port=\d+: Address already in use; give another"
    with serve.listening(0) as at, pytest.raises(UsageError, match=message):
        serve.listening(at.getsockname()[1])


def test_help_does_not_wait_for_jax_and_arguments_are_refused(monkeypatch):
    code = "import sys, difflid_jax.serve; print('jax' in sys.modules, 'starlette' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False False\n"
    values = flags.FlagValues()
    serve.define_flags(values)
    monkeypatch.setattr(flags, "FLAGS", values)
    with pytest.raises(UsageError, match=r"unexpected argument 'photo\.jpg'"):
        serve.main(values(["serve", "photo.jpg"]))


@pytest.mark.slow
def test_the_program_serves_until_it_is_interrupted():
    # A background job of a shell ignores it, and hands that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-m", "difflid_jax.serve", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        address = program.stdout.readline().split()[0]
        assert ask(int(address.rsplit(":", 1)[1]), "/")[0] == 200
        os.kill(program.pid, signal.SIGINT)
        assert program.wait(60) == 130 and program.stderr.read() == ""
