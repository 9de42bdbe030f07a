"""What is downloaded: so much is kept, the oldest goes first, and nothing that somebody needs."""

import os
import pathlib
import time

import fsspec
import numpy as np
import pytest

from jaxguard import checkpoints
from jaxguard.checkpoints import downloads, remote
from jaxguard.errors import CheckpointError
from jaxguard.fleet.reading import stamp_of

SIZE = 400


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """A process that has downloaded nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "_mine", {})
    monkeypatch.setattr(downloads, "_fresh", [np.inf])
    return tmp_path / "cache" / "jaxguard" / "remote"


def download(name: str, *, size: int = SIZE, hours: float = 0.0, is_mine: bool = True) -> None:
    """As `remote` does, so many hours ago, or as another process does."""
    entry = downloads.use(name) if is_mine else downloads.folder() / name
    (entry / "model").mkdir(parents=True)
    (entry / "model" / "weights").write_bytes(bytes(size))
    then = time.time() - 3600 * hours
    for path in (entry / "model" / "weights", entry / "model", entry):
        os.utime(path, (then, then))
    if is_mine:
        downloads._mine[name] = then
        downloads.added(size)


def names(folder) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_oldest_goes_first_and_the_newest_stay(folder, monkeypatch):
    monkeypatch.setenv(downloads.VARIABLE, str(3 * SIZE))
    monkeypatch.setattr(downloads, "NEWEST", 2)
    for number in range(10):
        download(f"{number}", hours=0.1 - 1e-3 * number)
        assert names(folder) == [f"{k}" for k in range(max(0, number - 2), number + 1)]
    # What is used again is the newest.
    downloads.use("7")
    download("a")
    assert names(folder) == ["7", "9", "a"]
    # However large the newest are, they are there.
    download("b", size=100 * SIZE)
    assert names(folder) == ["a", "b"]


def test_what_other_processes_use_stays_for_an_hour(folder, monkeypatch):
    monkeypatch.setenv(downloads.VARIABLE, "0")
    monkeypatch.setattr(downloads, "NEWEST", 1)
    download("theirs", hours=0.9, is_mine=False)
    download("forgotten", hours=1.1, is_mine=False)
    download(".half.partial", hours=1.1, is_mine=False)
    download("shared", hours=0.5)
    os.utime(folder / "shared")
    download("mine", hours=0.5)
    download("new")
    assert names(folder) == ["new", "shared", "theirs"]


def test_nobody_looks_through_the_folder_for_each_small_file(folder, monkeypatch):
    looks = []
    monkeypatch.setattr(downloads, "_trim", looks.append)
    monkeypatch.setenv(downloads.VARIABLE, str(16 * 4 * SIZE))
    for number in range(9):
        download(f"{number}")
    assert len(looks) == 3  # the first, and each sixteenth of what is kept


@pytest.mark.parametrize("told", ["", "-1", "16GiB", "1e9", "\u0663"])
def test_a_limit_is_a_number_of_bytes(monkeypatch, told):
    monkeypatch.setenv(downloads.VARIABLE, told)
    with pytest.raises(CheckpointError, match="JAXGUARD_CACHE_BYTES: expected a number of bytes, such as 17179869184"):
        downloads.added(1)


def test_more_files_behind_urls_than_are_kept_and_each_is_known_again(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(downloads.VARIABLE, "1")
    monkeypatch.setattr(downloads, "NEWEST", 1)
    memory = fsspec.filesystem("memory")
    try:
        urls = []
        for number in range(3):
            path = tmp_path / f"{number}.safetensors"
            checkpoints.save(path, {"w": np.full(number + 1, 7.0)})
            memory.put(str(path), f"/bucket/{path.name}")
            urls.append(f"memory://bucket/{path.name}")
        stamps = [stamp_of(checkpoints.load(url).location) for url in urls]
        assert len(names(folder)) == 1
        for url, stamp in zip(urls, stamps, strict=True):
            location = remote.fetched(url)
            assert location.is_file()
            assert stamp_of(location) == stamp  # as if it had stayed there
        # Other contents are another file, even of the same size.
        checkpoints.save(path, {"w": np.full(number + 1, 8.0)}, overwrite=True)
        time.sleep(0.01)
        memory.put(str(path), f"/bucket/{path.name}")
        assert stamp_of(remote.fetched(urls[-1])) != stamps[-1]
    finally:
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]
