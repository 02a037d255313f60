"""The page in a real browser: Chromium without a window, driven by Playwright.

Skipped if no Chromium is installed. CI installs none: it and the libraries it needs are 300 MB to download
and unpack in every run, of a CI that has ten minutes; test_app.py tests there what the page asks for.
"""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from difflid_jax.images.photos import read_photo

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    flags = ["--disable-background-networking", "--no-first-run"]
    # Chromium's sandbox refuses root, as which containers run.
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as drivers:
        browser = drivers.chromium.launch(executable_path=BROWSER, args=flags)
        yield browser
        browser.close()


def test_photographs_are_restored_shown_and_downloaded(browser, port, restorer, tmp_path):
    # Committed as reference values of metrics; a crop of 64×64 shares the compiled program of other tests.
    hazy = os.path.join(os.path.dirname(__file__), "..", "golden", "astronaut_degraded.png")
    Image.open(hazy).convert("RGB").crop((0, 0, 64, 64)).save(tmp_path / "hazy photo.png")
    (tmp_path / "bad <i>.jpg").write_bytes(b"not an image at all")
    page = browser.new_page(accept_downloads=True)
    page.set_default_timeout(120_000)
    fetched, problems = [], []
    page.on("request", lambda request: fetched.append(request.url))
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"http://127.0.0.1:{port}/")

    page.set_input_files("#files", [tmp_path / "hazy photo.png", tmp_path / "bad <i>.jpg"])
    good, bad = (page.locator("article", has_text=name) for name in ("hazy photo.png", "bad <i>.jpg"))
    good.locator(".download").wait_for()
    bad.locator(".error").wait_for()
    assert bad.locator(".error").inner_text().startswith("bad <i>.jpg: not an image (expected PNG")
    assert not bad.locator(".download").is_visible() and not good.locator(".error").is_visible()

    pixels = read_photo(tmp_path / "hazy photo.png").pixels
    for strength in (1, 0.4):
        page.locator("#strength").fill(str(strength))
        with page.expect_download() as download:
            good.locator(".download").click()
        assert download.value.suggested_filename == "hazy photo.png"
        download.value.save_as(tmp_path / "downloaded.png")
        expected = restorer.restore_pixels(pixels, strength)
        np.testing.assert_array_equal(read_photo(tmp_path / "downloaded.png").pixels, expected)

    # The slider uncovers the restored image; its opacity is the strength.
    good.locator(".view input").fill("25")
    style = "element => [getComputedStyle(element).clipPath, getComputedStyle(element).opacity]"
    assert good.locator(".after").evaluate(style) == ["inset(0px 0px 0px 25%)", "0.4"]
    assert good.locator(".after").evaluate("element => element.naturalWidth") == 64

    good.locator("summary").click()
    good.locator("figcaption").nth(1).wait_for()
    assert good.locator("figcaption").all_inner_texts()[0].startswith("content: t = 0, 2×2×32")
    own = ("blob:", "data:", f"http://127.0.0.1:{port}/")
    assert not problems and not [url for url in fetched if not url.startswith(own)]
    page.close()
