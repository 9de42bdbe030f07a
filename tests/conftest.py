"""Fixtures shared by all tests."""

import os
import pathlib

import pytest


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of the real datasets and third-party checkpoints; tests that need it skip where it is absent."""
    sibling = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("JAXGUARD_SHARED_DATA", sibling))
    if not (folder / "checkpoints").is_dir():
        pytest.skip(f"needs the third-party checkpoints: no folder {folder}/checkpoints; set JAXGUARD_SHARED_DATA")
    return folder
