from collections.abc import Iterator

import faulty_server
import pytest


@pytest.fixture
def server() -> Iterator[faulty_server.Server]:
    with faulty_server.running() as server:
        yield server
