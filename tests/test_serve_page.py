"""The service's page in Chromium, driven as a person drives it: a file, a drop, a recording, the keyboard, a token."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from serving import serving

pytest.importorskip("fastapi", reason="needs the extra `serve`")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright's package")
pytestmark = pytest.mark.browser
FLAGS = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
TOKEN = "only for this test"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no `chromium` on the PATH: the page was not drawn")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def served(model_folder: str, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    with serving(folder, f"tones={model_folder}", f"again={model_folder}", "--local", "--set", "max_mib=2") as up:
        yield f"http://127.0.0.1:{up.port}/"


def failed(message: Any) -> bool:
    """Whether the console tells of an error that is not a refusal of the service's, which the page shows."""
    return message.type == "error" and not message.text.startswith("Failed to load resource")


@pytest.fixture
def page(browser: Any, served: str) -> Iterator[Any]:
    """The page, which asks no other host and reports no error."""
    context = browser.new_context(accept_downloads=True)
    found, asked, errors = context.new_page(), [], []
    found.on("request", lambda request: asked.append(request.url))
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.on("console", lambda message: errors.append(message.text) if failed(message) else None)
    found.goto(served)
    yield found
    context.close()
    assert errors == [] and all(url.startswith((served, "blob:", "data:")) for url in asked), (errors, asked)


@pytest.fixture(scope="module")
def song(tmp_path_factory) -> Path:
    """Two seconds of a low tone, then two of a high one."""
    time_T = np.arange(16000) / 8000
    tones = [0.6 * np.sin(2 * np.pi * hz * time_T) for hz in (180, 900)]
    file = tmp_path_factory.mktemp("song") / "two tones <b>.wav"
    soundfile.write(file, np.concatenate(tones).astype(np.float32), 8000)
    return file


def until(page: Any, script: str, given: Any = None) -> None:
    """Wait for a true value; Playwright's own way needs `eval`, which the page's policy forbids."""
    for _ in range(1200):
        if page.evaluate(script, given):
            return
        page.wait_for_timeout(50)
    raise TimeoutError(f"{script}; the page says: {page.locator('#status').inner_text()}")


def done(page: Any) -> None:
    until(page, "document.getElementById('status').textContent.endsWith('done.')")


def test_a_file_side_by_side_with_thresholds_and_downloads(page: Any, song: Path) -> None:
    page.set_input_files("#file", song)
    done(page)
    assert page.locator("#name").inner_text() == "two tones <b>.wav"
    assert page.locator(".models section h2").all_inner_texts() == ["tones", "again"]
    first = page.locator(".models section").first
    assert first.locator(".stage .names .cell").all_inner_texts()[1:] and first.locator(".stage canvas").count() == 3
    assert page.locator("#picture canvas").count() == 2, "waveform and spectrogram"
    inked = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    for canvas in [*page.locator("#picture canvas").all(), *first.locator("canvas").all()]:
        assert canvas.evaluate(inked) > 2, "nothing is drawn"
    events = first.locator(".caption").inner_text()
    first.locator(".bar input[type=range]").fill("255")
    until(page, "was => document.querySelector('.models .caption').textContent !== was", events)
    page.locator(".events button").first.click()
    until(page, "!document.querySelector('audio').paused || document.querySelector('audio').currentTime > 0")
    for kind, beginning in (("csv", "file,start_s"), ("vtt", "WEBVTT"), ("html", "<!DOCTYPE html>")):
        with page.expect_download() as waiting:
            first.get_by_role("button", name=kind, exact=True).click()
        file = waiting.value
        assert file.suggested_filename == f"two tones _b_.{kind}" or file.suggested_filename.endswith(f".{kind}")
        assert Path(file.path()).read_text().startswith(beginning)
    page.get_by_label("a score every").fill("1")
    page.get_by_label("again", exact=False).first.uncheck()
    page.get_by_role("button", name="ask again").click()
    until(page, "document.querySelectorAll('.models section').length === 1")


def test_a_drop_and_what_is_no_sound(page: Any) -> None:
    drop = """name => { const data = new DataTransfer(); data.items.add(new File([new Uint8Array(900)], name));
      document.getElementById('drop').dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true })); }"""
    page.wait_for_selector("#choice input")
    page.evaluate(drop, "nothing.bin")
    page.wait_for_selector("#status.bad")
    assert "cannot be decoded" in page.locator("#status").inner_text()
    assert "cannot decode" in page.locator("#picture").inner_text()


def test_the_microphone(page: Any) -> None:
    page.get_by_role("button", name="record").click()
    until(page, "/Recording: [1-9]/.test(document.getElementById('status').textContent)")
    page.get_by_role("button", name="stop and listen").click()
    done(page)
    assert re.fullmatch(r"recording\.\w+", page.locator("#name").inner_text())
    assert page.locator(".models section").count() == 2


def test_by_keyboard_and_for_a_screen_reader(page: Any, song: Path) -> None:
    page.set_input_files("#file", song)
    done(page)
    unnamed = """() => [...document.querySelectorAll('button, input, canvas, audio')].filter((one) => one.offsetParent
      && one.ariaHidden !== 'true' && !(one.labels && one.labels.length)
      && !one.getAttribute('aria-label') && !one.textContent.trim()).length"""
    assert page.evaluate(unnamed) == 0, "every control has a name"
    assert page.get_by_role("status").count() == 1 and page.get_by_role("main").count() == 1
    page.locator("#file").focus()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.slice(0, 26) || document.activeElement.id"))
    assert {"record from the microphone", "hop", "smooth", "ask again", "zoom in"} <= set(reached), reached
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('audio').currentTime > 1")


def test_a_token_is_asked_for(browser: Any, model_folder: str, tmp_path: Path) -> None:
    with serving(tmp_path, f"tones={model_folder}", "--local", ATOSE_SERVE_TOKEN=TOKEN) as up:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{up.port}/")
        assert not page.locator("#work").is_visible()
        page.get_by_label("The service's token").fill("wrong")
        page.keyboard.press("Enter")
        until(page, "!document.getElementById('token').validity.valid")
        page.get_by_label("The service's token").fill(TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#choice input")
        assert page.locator("#work").is_visible() and not page.locator("#access").is_visible()
        page.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)])
def test_light_dark_and_narrow(browser: Any, served: str, song: Path, scheme: str, width: int) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    page.goto(served)
    page.set_input_files("#file", song)
    done(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == (scheme == "dark")
    page.close()
