"""What all pages share: how templates are rendered, and what lies beside them."""

from __future__ import annotations

import datetime
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2


def environment() -> jinja2.Environment:
    """Templates of this package; hostile strings are escaped, and a name that nobody gave is an error."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def read(name: str) -> str:
    """The text of a file of this package."""
    return resources.files("jaxguard.report").joinpath(name).read_text(encoding="utf-8")


def written_at(moment: datetime.datetime | None) -> str:
    """The time a page shows; now, in UTC, where none is given."""
    return f"{moment or datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M %Z}".strip()
