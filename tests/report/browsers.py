"""Pages in headless Chromium, skipped with a reason where there is none."""

import pathlib
import shutil
import subprocess

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --hide-scrollbars"
)


def dump(address: str, folder: pathlib.Path, *options: str) -> tuple[str, list[str]]:
    """Opens an address; returns the document as it ends up, and console messages."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs chromium, chromium-browser or google-chrome on PATH to run the page")
    command = [browser, *FLAGS.split(), *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
