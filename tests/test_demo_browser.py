"""The page of ``dasr demo`` in Chromium: a picture is dropped, sliders are moved, a result saved.

Needs Chromium, its driver, and the package selenium.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page is made by Gradio")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "coffee_lr.png"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="there is no Chromium"),
    pytest.mark.skipif(not DRIVER, reason="there is no chromedriver"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    environment = {**os.environ, "TMPDIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-m", "dasr_ops", "demo", "--port", "0", "--tile", "96"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.stdout.readline().split()[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert not list(folder.iterdir())
    finally:
        process.kill()


class Page:
    """The page in a browser.

    Args:
        address: of the page.
        width, height: of the window, in CSS pixels.
        downloads: folder for what is saved.
    """

    def __init__(self, address: str, width: int, height: int, downloads: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        for argument in (
            *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update"),
            f"--window-size={width},{height}",
        ):
            options.add_argument(argument)
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.browser.get(address)
        self.wait(lambda: self.one("#source input[type=file]"))

    def one(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def wait(self, condition: Callable[[], object], seconds: float = 60) -> None:
        from selenium.common.exceptions import WebDriverException

        end = time.monotonic() + seconds
        while True:
            try:
                if condition():
                    return
            except WebDriverException:
                pass
            assert time.monotonic() < end, f"waited for {seconds} s; {self.text('body')}"
            time.sleep(0.1)

    def upload(self, path: Path) -> None:
        self.one("#source input[type=file]").send_keys(str(path))

    def ready(self, size: str) -> None:
        self.wait(lambda: self.text("#status").startswith(f"{size} pixels in "))

    def pictures(self) -> list[str]:
        """Addresses of what the comparison shows, before and after."""
        found = self.browser.find_elements("css selector", "#compare img")
        return [image.get_attribute("src") for image in found]

    def pixels(self, number: int) -> np.ndarray:
        """The picture before (0) or after (1), as the browser decodes it, [H, W, 3]."""
        image = self.browser.execute_async_script(
            """const [address, done] = arguments;
            const image = new Image();
            image.onload = () => {
              const canvas = document.createElement('canvas');
              canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
              const context = canvas.getContext('2d');
              context.drawImage(image, 0, 0);
              const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
              done([canvas.height, canvas.width, Array.from(data)]);
            };
            image.src = address;""",
            self.pictures()[number],
        )
        height, width, values = image
        return np.array(values, np.uint8).reshape(height, width, 4)[:, :, :3]

    def move(self, name: str, value: float) -> None:
        """Move a slider as a hand does."""
        self.browser.execute_script(
            """const slider = document.querySelector(`#${arguments[0]} input[type=range]`);
            slider.value = arguments[1];
            slider.dispatchEvent(new Event('input', {bubbles: true}));""",
            name,
            value,
        )

    def requests(self) -> set[str]:
        """Addresses that the browser has asked for since the last call."""
        messages = (
            json.loads(e["message"])["message"] for e in self.browser.get_log("performance")
        )
        return {
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        }


@pytest.fixture
def open_page(address, tmp_path) -> Iterator[Callable[..., Page]]:
    pages = []

    def open_(width: int = 1280, height: int = 900) -> Page:
        pages.append(Page(address, width, height, tmp_path))
        return pages[-1]

    yield open_
    for page in pages:
        page.browser.quit()


def test_picture_sliders_download(open_page, address, tmp_path):
    page = open_page()
    page.upload(PICTURE)
    page.ready("600 × 400")
    assert "Noise" in page.text("#reading")
    with Image.open(PICTURE) as image:
        bicubic = np.asarray(image.resize((600, 400), Image.Resampling.BICUBIC))
    assert np.array_equal(page.pixels(0), bicubic)
    plain, shown = page.pixels(1), page.pictures()[1]
    assert plain.shape == (400, 600, 3)

    page.move("denoise", 1)
    page.wait(lambda: page.pictures()[1] != shown and page.one("#save").is_enabled())
    page.ready("600 × 400")
    changed = page.pixels(1)
    assert np.abs(changed.astype(int) - plain).max() > 0
    assert np.array_equal(page.pixels(0), bicubic)

    page.one("#save").click()
    page.wait((tmp_path / "coffee_lr_x4.png").is_file)
    with Image.open(tmp_path / "coffee_lr_x4.png") as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), changed)

    shown = page.pictures()[1]
    page.browser.execute_script("document.querySelector('#scale input').click()")
    page.wait(lambda: page.pictures()[1] != shown)
    page.ready("300 × 200")
    asked = {url for url in page.requests() if not url.startswith(("data:", "blob:"))}
    assert asked
    assert not {url for url in asked if not url.startswith(f"{address}/")}
    severe = [e["message"] for e in page.browser.get_log("browser") if e["level"] == "SEVERE"]
    assert not severe


def test_detail_of_a_large_picture_comes_first_and_can_be_moved(open_page, tmp_path):
    with Image.open(PICTURE) as image:
        image.resize((450, 300)).save(tmp_path / "large.jpg")
    page = open_page()
    page.upload(tmp_path / "large.jpg")
    page.wait(page.pictures)
    assert "pixels in" not in page.text("#status")  # the whole is not there yet
    assert page.pixels(1).shape == (600, 800, 3)
    detail, shown = page.pixels(1), page.pictures()
    page.move("deblur", 1)  # while the whole picture is computed
    page.wait(lambda: page.pictures()[1] != shown[1])
    assert np.abs(page.pixels(1).astype(int) - detail).max() > 0
    page.ready("1800 × 1200")
    shown = page.pictures()
    page.browser.execute_script("document.querySelector('#view input').click()")
    page.wait(lambda: page.pictures()[1] != shown[1])
    assert page.pixels(1).shape == (1200, 1800, 3)
    page.one("#source img").click()
    page.wait(lambda: page.pixels(1).shape == (600, 800, 3))


def test_bad_file_is_explained_and_the_next_one_works(open_page, tmp_path):
    (tmp_path / "bad.png").write_text("hello")
    page = open_page()
    page.upload(tmp_path / "bad.png")
    page.wait(lambda: "This file cannot be used" in page.text("#status"))
    page.wait(lambda: page.one("#source input[type=file]"))
    page.upload(PICTURE)
    page.ready("600 × 400")


def test_narrow_screen(open_page):
    page = open_page(390, 844)
    page.one("#example").click()
    page.ready("600 × 400")
    width = page.browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= 390
    below = page.one("#denoise").location["y"]
    assert page.one("#compare").location["y"] < below
    assert page.one("#compare").size["width"] > 300


def test_labels(open_page):
    """Everything that can be operated says what it is."""
    page = open_page()
    page.one("#example").click()
    page.ready("600 × 400")
    nameless = page.browser.execute_script(
        """return [...document.querySelectorAll('input, button, select, textarea')]
        .filter((e) => e.offsetParent && e.type !== 'file')
        .filter((e) => !(e.labels?.length || e.getAttribute('aria-label') || e.title
                         || e.textContent.trim()))
        .map((e) => e.outerHTML)"""
    )
    assert not nameless
