"""Takes the pictures of the service's page: `python docs/screenshots/serve.py SOUND INDEX MODEL...`, models as `serve`
takes them, INDEX as `find index` made it of one of them.

Needs Playwright's package and Chromium. Starts a service on the loopback interface and ends it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright
from take import HERE, free_port

VIEWS = {"serve": ("light", 1280, 1400), "serve_dark": ("dark", 1280, 1400), "serve_narrow": ("light", 400, 1400)}
WORDS = "guitar, -drums"


def main(sound: str, index: str, *models: str) -> None:
    """A picture of every view, and one of the search."""
    address = f"http://127.0.0.1:{(port := free_port())}/"
    command = [sys.executable, "-m", "atose_ray.serve", *models, "--local", "--port", str(port)]
    command += ["--set", f"index={index}"]
    service = subprocess.Popen(command)
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address).close()
                break
            time.sleep(0.5)
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for name, (scheme, width, height) in VIEWS.items():
                page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
                page.goto(address)
                page.set_input_files("#file", sound)
                page.get_by_text(f"{Path(sound).name}: done.").wait_for(timeout=120_000)
                page.evaluate("document.querySelector('#player audio').currentTime = 6")
                page.wait_for_timeout(1500)
                page.screenshot(path=HERE / f"{name}.png")
            page = browser.new_page(color_scheme="dark", viewport={"width": 1280, "height": 900})
            page.goto(address)
            page.get_by_text("words that it knows").click()
            page.get_by_label("Words", exact=True).fill(WORDS)
            page.keyboard.press("Enter")
            page.locator("#found button").first.click()
            page.wait_for_timeout(1500)
            page.screenshot(path=HERE / "serve_find.png")
            browser.close()
    finally:
        service.terminate()
        service.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
