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
from serving import free_port, serving

from atose_ray import find

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
def collection(model_folder: str, song: Path, tmp_path_factory) -> Path:
    """A folder with an index of its folder `sounds`, in which one file is by now no more."""
    folder = tmp_path_factory.mktemp("collection")
    (folder / "sounds").mkdir()
    for number, hz in enumerate((180, 400, 900)):
        tone = 0.6 * np.sin(2 * np.pi * hz * np.arange(24000) / 8000)
        soundfile.write(folder / "sounds" / f"tone{number}.wav", tone, 8000)
    for name in ("<i>two<i>.wav", "gone.wav"):
        (folder / "sounds" / name).write_bytes(song.read_bytes())
    find.main(["index", model_folder, str(folder / "sounds"), str(folder / "index")])
    (folder / "sounds" / "gone.wav").unlink()
    return folder


@pytest.fixture(scope="module")
def served(model_folder: str, collection: Path, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    sets = [word for one in ("max_mib=2", "max_seconds=60", f"index={collection / 'index'}") for word in ("--set", one)]
    with serving(folder, f"tones={model_folder}", f"again={model_folder}", "--local", *sets) as up:
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
        page.get_by_role("alert").get_by_text("That is not the token of this service.").wait_for()
        page.get_by_label("The service's token").fill(TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#choice input")
        assert page.locator("#work").is_visible() and not page.locator("#access").is_visible()
        page.close()


def test_a_search_by_words_and_by_sound(page: Any, song: Path) -> None:
    page.get_by_text("4 words that it knows").click()
    page.get_by_role("button", name="low", exact=True).click()
    assert page.get_by_label("Words", exact=True).input_value() == "low"
    page.keyboard.type(", -high")
    page.keyboard.press("Enter")
    rows = page.get_by_role("list", name="sounds found").get_by_role("listitem")
    rows.first.wait_for()
    assert page.get_by_role("status").inner_text() == "low, -high: the best 5 of 5 sounds."
    assert rows.count() == 5 and all("low 0." in text and "high 0." in text for text in rows.all_inner_texts())
    page.get_by_role("button", name="play <i>two<i>.wav").press("Enter")
    until(page, "document.querySelector('#found audio')?.duration > 3.9")
    assert page.evaluate("document.activeElement.tagName") == "AUDIO"
    page.get_by_role("button", name="play gone.wav").click()
    page.get_by_role("alert").get_by_text("gone.wav is in the index, but its sound is not at hand").wait_for()
    page.get_by_role("button", name="what sounds when in <i>two<i>.wav").click()
    done(page)
    assert page.locator("#name").inner_text() == "<i>two<i>.wav" and page.locator(".models section").count() == 2
    page.get_by_role("button", name="find what is like it").click()
    until(page, "document.getElementById('status').textContent.startsWith('like <i>two<i>.wav: the best 5')")
    nearest = rows.all_inner_texts()[:2]
    assert all("two" in text or "gone" in text for text in nearest) and "like 1.00" in nearest[0]
    for words, why in (("zither", "does not know zither; it knows high"), ("low:x", "must be a number"), ("", "Write")):
        page.get_by_label("Words", exact=True).fill(words)
        page.get_by_role("button", name="find", exact=True).click()
        page.locator("#status.bad").get_by_text(why).wait_for()


def test_what_is_too_long_is_refused_before_it_is_sent(page: Any, tmp_path: Path) -> None:
    sent = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    soundfile.write(tmp_path / "long.mp3", np.zeros(8000 * 90), 8000)
    page.wait_for_selector("#choice input")
    page.set_input_files("#file", tmp_path / "long.mp3")
    page.get_by_text("long.mp3 lasts 1 min 30 s; this service takes at most 1 min 00 s. Cut it.").wait_for()
    (tmp_path / "large.wav").write_bytes(bytes(3 << 20))
    page.set_input_files("#file", tmp_path / "large.wav")
    page.get_by_text("large.wav has 3 MiB; this service takes at most 2.").wait_for()
    assert sent == [] and not page.locator("#sound").is_visible()


def test_a_service_that_was_away_and_came_back_as_another(
    browser: Any, model_folder: str, song: Path, tmp_path
) -> None:
    page, port = browser.new_page(), free_port()
    with serving(tmp_path, f"old={model_folder}", "--local", port=port):
        page.goto(f"http://127.0.0.1:{port}/")
        page.set_input_files("#file", song)
        done(page)
    page.get_by_role("button", name="ask again").click()
    page.get_by_text("the service does not answer; is it running?").wait_for()
    with serving(tmp_path, f"new={model_folder}", "--local", port=port):
        page.get_by_role("button", name="ask again").click()
        page.get_by_text("there is no model 'old'; there are new").wait_for()
        page.get_by_role("button", name="ask again").click()
        done(page)
    page.close()


def test_a_microphone_that_is_not_lent(browser: Any, served: str) -> None:
    page = browser.new_page()
    page.add_init_script(
        "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError'); };"
    )
    page.goto(served)
    page.get_by_role("button", name="record").click()
    page.get_by_text("No microphone. The browser was told not to lend it to this page").wait_for()
    page.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 400)])
def test_light_dark_and_narrow(browser: Any, served: str, song: Path, scheme: str, width: int) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    page.goto(served)
    page.get_by_label("Words", exact=True).fill("low")
    page.keyboard.press("Enter")
    page.locator("#found li").first.wait_for()
    page.set_input_files("#file", song)
    done(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == (scheme == "dark")
    page.close()
