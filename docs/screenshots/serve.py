"""Takes the pictures of the service's page: `python docs/screenshots/serve.py SOUND MODEL...`, as `serve` takes models.

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

VIEWS = {"serve": ("light", 1280, 1250), "serve_dark": ("dark", 1280, 1250), "serve_narrow": ("light", 390, 1250)}


def main(sound: str, *models: str) -> None:
    """A picture of every view."""
    address = f"http://127.0.0.1:{(port := free_port())}/"
    command = [sys.executable, "-m", "atose_ray.serve", *models, "--local", "--port", str(port)]
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
                page.evaluate("document.querySelector('audio').currentTime = 6")
                page.wait_for_timeout(1500)
                page.screenshot(path=HERE / f"{name}.png")
            browser.close()
    finally:
        service.terminate()
        service.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
