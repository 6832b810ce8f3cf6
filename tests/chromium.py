"""A real browser for tests: headless Chromium, driven by selenium."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needed = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="chromium and chromedriver are not installed"
)
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]


@contextmanager
def started(profile: Path, downloads: Path):
    """A browser with a profile of its own that keeps what it logs and saves in ``downloads``."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def downloaded(folder: Path, pattern: str) -> Path:
    """The one file that a browser saves there, once it is whole.

    Chromium takes the name with an empty file and moves the content over it when it has it all.
    """
    end = time.monotonic() + 60
    while not any(path.stat().st_size for path in folder.glob(pattern)):
        assert time.monotonic() < end, f"no {pattern} was saved"
        time.sleep(0.05)
    (path,) = folder.glob(pattern)
    return path
