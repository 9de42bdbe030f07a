"""Pages in headless Chromium, skipped with a reason where there is none."""

import pathlib
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --hide-scrollbars"
)


def run(address: str, folder: pathlib.Path, *options: str) -> tuple[str, list[str]]:
    """Opens an address; returns what the browser printed, and console messages."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs chromium, chromium-browser or google-chrome on PATH to run the page")
    command = [browser, *FLAGS.split(), *options, f"--user-data-dir={folder / 'profile'}", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def dump(address: str, folder: pathlib.Path, *options: str) -> tuple[str, list[str]]:
    """Opens an address; returns the document as it ends up, and console messages."""
    return run(address, folder, *options, "--dump-dom")


def screenshot(
    page: pathlib.Path, folder: pathlib.Path, width: int, *, height: int = 1400, is_dark: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Renders a page in an iframe of a width, for windows have a least one; returns pixels and console messages."""
    frame = folder / "frame.html"
    style = "border:0;display:block"
    frame.write_text(
        f'<!doctype html><body style="margin:0"><iframe src="{page.name}" style="{style}" '
        f'width="{width}" height="{height}"></iframe>'
    )
    scheme = ("--blink-settings=preferredColorScheme=0",) if is_dark else ()
    picture = folder / "page.png"
    _, console = run(
        frame.as_uri(), folder, *scheme, f"--window-size={max(width, 600)},{height}", f"--screenshot={picture}"
    )
    return np.asarray(Image.open(picture).convert("RGB"), np.float32)[:, :width], console
