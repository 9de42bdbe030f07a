import dataclasses
import json

import numpy as np
import pytest

from jaxguard.fleet import search_records
from jaxguard.fleet.store import Store
from jaxguard.inversion import search
from jaxguard.types import Network


def columns(_, images):
    return images[:, :, :5, 0].mean(1) * 9


FOUND = search(Network({}, columns, (6, 6, 1)))


def same(one, other):
    if dataclasses.is_dataclass(one):
        names = [item.name for item in dataclasses.fields(one)]
        return type(one) is type(other) and all(same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, tuple | dict):
        values = (one.values(), other.values()) if isinstance(one, dict) else (one, other)
        return type(one) is type(other) and len(one) == len(other) and all(map(same, *values))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return one == other or (isinstance(one, float) and np.isnan([one, other]).all())


def test_a_search_is_read_back_bit_by_bit():
    again = search_records.decoded(search_records.encoded(FOUND))
    assert FOUND.rows and same(FOUND, again)
    assert again.target == FOUND.target and again.gap == FOUND.gap


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 3}, {"rows": [{"kind": "patch"}]}, {"more": 1},
        {"pictures": {"dtype": "|O", "shape": [1], "data": "AAAA"}},
        {"pictures": {"dtype": "<f4", "shape": [9], "data": "AAAA"}},
    ],
)  # fmt: skip
def test_what_is_no_search_is_refused(change):
    text = json.dumps(json.loads(search_records.encoded(FOUND)) | change)
    with pytest.raises(ValueError):
        search_records.decoded(text)


def test_a_store_keeps_searches_by_content_and_settings(tmp_path):
    Store(tmp_path, "s").add_search("kinds", "ab", FOUND)
    found = Store(tmp_path, "s").searches("kinds", ["ab", "cd"])
    assert found.keys() == {"ab"} and same(found["ab"], FOUND)
    assert Store(tmp_path, "t").searches("kinds", ["ab"]) == Store(tmp_path, "s").searches("others", ["ab"]) == {}
