"""Content hashes: values of the reference implementations, and what contents are called."""

import hashlib

import pytest

from jaxguard.checkpoints import hashing

# `b3sum` of nothing and of "abc", as in the test vectors of the BLAKE3 team.
VECTORS = {
    b"": "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    b"abc": "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
}


@pytest.mark.parametrize("content", VECTORS)
def test_of_a_file(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert hashing.of_file(path, "sha256") == hashlib.sha256(content).hexdigest()
    assert hashing.of_file(path, "blake3") == f"blake3:{VECTORS[content]}"
    assert hashing.algorithm_of(hashing.of_file(path, "blake3")) == "blake3"


def test_of_several_files_depends_on_names_and_contents(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"")
    paths = [tmp_path / "b", tmp_path / "a"]
    for algorithm in ("sha256", "blake3"):
        found = hashing.of_files(tmp_path, paths, algorithm)
        assert found == hashing.of_files(tmp_path, paths[::-1], algorithm)
        assert hashing.algorithm_of(found) == algorithm
        (tmp_path / "a").rename(tmp_path / "c")
        assert hashing.of_files(tmp_path, [tmp_path / "b", tmp_path / "c"], algorithm) != found
        (tmp_path / "c").rename(tmp_path / "a")
