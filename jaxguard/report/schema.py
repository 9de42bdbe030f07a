"""Reports for machines: JSON of schema `jaxguard.report/2` and back, JSON lines, Parquet.

A document mirrors `jaxguard.types.Report` field by field, plus the key `schema`. Rates stay fractions in [0, 1], arrays
become nested lists, and what JSON cannot say (NaN, infinity) becomes null. Reading turns null back into NaN, and into
infinity for a layer's `threshold`, where it means that none could be set. What a report does not have, such as a
layer's `errors` or a finding's `search`, is null too. The key `accounts` lists what became of the leaves, each list
once, and `leaves` of a finding is the number of its list: checkpoints of one structure share it. Keys whose field has a
default may be absent, and unknown keys are ignored: readers of a version stay valid as fields are added.
"""

import dataclasses
import enum
import io
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import Any

import numpy as np

from jaxguard.errors import JaxguardError
from jaxguard.types import Finding, Report
from jaxguard.types.findings import LeafAccount

SCHEMA = "jaxguard.report/2"

IMAGE_DECIMALS = 5
"""Decimals of pixel values: 390 times finer than the 8 bits they came from, at a third of the size."""

_NULL = {"threshold": math.inf}
_DTYPES = {
    "mask": bool, "undefined": bool, "shown": int, "classes": int, "hits": int, "judged": int, "corners": int,
    "answers": int, "sources": int,
}  # fmt: skip


def to_json(report: Report) -> str:
    """Writes a report as strict JSON: one line per field, and per item of a list, such as a finding.

    Args:
        report: of any size; values of `options` that JSON cannot hold are written as their `str`.

    Returns:
        ASCII text ending in a newline.

    >>> print(to_json(Report("demo", "jaxguard scan runs", skipped=(("notes.txt", "no checkpoint"),))))
    {
    "schema": "jaxguard.report/2",
    "title": "demo",
    "command": "jaxguard scan runs",
    "findings": [],
    ...
    "skipped": [
    ["notes.txt","no checkpoint"]
    ],
    ...
    """
    accounts, known = dict[tuple[LeafAccount, ...], int](), dict[int, int | None]()
    findings = []
    for finding in report.findings:
        if id(finding.leaves) not in known:  # to hash one takes as long as to write it, and most are shared
            known[id(finding.leaves)] = accounts.setdefault(finding.leaves, len(accounts)) if finding.leaves else None
        number = known[id(finding.leaves)]
        findings.append(plain(dataclasses.replace(finding, leaves=())) | {"leaves": number})
    rest = plain(dataclasses.replace(report, findings=()))
    fields = {"schema": SCHEMA, **rest, "findings": findings, "accounts": plain(list(accounts))}
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {_lines(value)}" for name, value in fields.items()) + "\n}\n"


def to_jsonl(report: Report) -> Iterator[str]:
    """Writes one line per finding, as in `to_json` but with its leaves counted, then one per file that was not opened.

    Args:
        report: of any size: one line at a time is in memory.

    Yields:
        A JSON object without a line break; of a skipped file only its name, the verdict `skipped` and the reason.

    >>> list(to_jsonl(Report("", skipped=(("notes.txt", "no checkpoint"),))))
    ['{"provenance":{"name":"notes.txt"},"verdict":"skipped","reason":"no checkpoint"}']
    """
    for finding in report.findings:
        yield _compact(plain(dataclasses.replace(finding, leaves=())) | {"leaves": counts(finding)})
    for path, why in report.skipped:
        yield _compact({"provenance": {"name": path}, "verdict": "skipped", "reason": why})


def counts(finding: Finding) -> dict[str, dict[str, int]]:
    """Leaves, numbers and bytes by state, and how many entries were left out.

    >>> from jaxguard.types import Provenance, Verdict
    >>> counts(Finding(Provenance("m.npz"), Verdict.INCONCLUSIVE, left_out={"step": "a counter"}))["left out"]
    {'entries': 1}
    """
    found = {
        state: {"leaves": leaves, "numbers": numbers, "bytes": size} for state, leaves, numbers, size in finding.counts
    }
    return {**found, "left out": {"entries": len(finding.left_out)}}


def to_parquet(report: Report) -> bytes:
    """Writes one row per finding: its fields, those of its provenance and of its metrics.

    Layers and triggers are left out. The rest of the report is JSON under `jaxguard.report` in the metadata.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, numbers, lists = pa.string(), pa.float64(), pa.list_(pa.string())
    kinds = {
        "name": texts, "sha256": texts, "blake3": texts, "size": pa.int64(), "format": texts, "architecture": texts,
        "verdict": texts, "reason": texts, "kind": texts, "cohort": texts, "z": numbers, "score": numbers,
        "p_value": numbers, "q_value": numbers, "looks": lists, "unsearched": texts, "notes": lists, "code": lists,
        "acc": numbers, "asr": numbers, "ra": numbers, "scored": pa.int64(), "not a layer": pa.int64(),
        "not understood": pa.int64(), "left out": pa.int64(),
    }  # fmt: skip
    rows = [_flat(finding, kinds) for finding in report.findings]
    rest = to_json(dataclasses.replace(report, findings=()))
    table = pa.Table.from_pylist(rows, pa.schema(kinds.items(), metadata={"jaxguard.report": rest}))
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def from_json(text: str) -> Report:
    """Reads what `to_json` wrote.

    Args:
        text: a `jaxguard.report/2` document; not trusted.

    Returns:
        The report, arrays as float64, int or bool. `options` hold JSON values: tuples come back as lists.

    Raises:
        JaxguardError: not strict JSON, another schema, or a value of the wrong kind; the message gives its path.
    """
    try:
        document = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise JaxguardError(
            f"expected a JSON document of schema {SCHEMA}, got text that is not JSON ({error}) in the report; "
            "pass the whole content of a report.json"
        ) from error
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA:
        raise JaxguardError(
            f"expected schema {SCHEMA!r}, got {found!r} at key 'schema' of the report; "
            "read it with the jaxguard version that wrote it, or write it again with this one"
        )
    listed = document.pop("accounts", [])
    accounts = _decode(tuple[tuple[LeafAccount, ...], ...], listed, "report.accounts")
    findings, numbers = document.get("findings"), list[Any]()
    for one in findings if isinstance(findings, list) else []:
        numbers.append(one.pop("leaves", None) if isinstance(one, dict) else None)
    report = _decode(Report, document, "report")
    return dataclasses.replace(report, findings=tuple(map(_with_leaves, report.findings, numbers, repeat(accounts))))


def _with_leaves(finding: Finding, number: Any, accounts: tuple[tuple[LeafAccount, ...], ...]) -> Finding:
    if number is None:
        return finding
    if type(number) is not int or not 0 <= number < len(accounts):
        raise _wrong_kind(
            f"a number below {len(accounts)}", number, f"leaves of the finding {finding.provenance.name!r}"
        )
    return dataclasses.replace(finding, leaves=accounts[number])


def plain(value: Any) -> Any:  # noqa: PLR0911  # one return per kind of value
    """Turns a value into what `json` can write strictly."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.bool_):
        return bool(value)
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.ndim == 4 and array.dtype.kind == "f":
            array = np.round(array.astype(np.float64), IMAGE_DECIMALS)
        return plain(array.tolist())
    return str(value)


def _flat(finding: Finding, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """A finding as one row; bytes of a file name that are not UTF-8 are spelt out."""
    merged = plain(finding.provenance) | plain(dataclasses.replace(finding, layers=(), search=None, leaves=()))
    merged |= {state: told.get("leaves", told.get("entries")) for state, told in counts(finding).items()}
    merged |= merged["metrics"] or {}
    merged["code"] = [str(call) for call in finding.code]
    row = {name: merged.get(name) for name in kinds}
    return {name: _unicode(value) if isinstance(value, str) else value for name, value in row.items()} | {
        name: [_unicode(text) for text in row[name]] for name in ("looks", "notes", "code")
    }


def _unicode(text: str) -> str:
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # halves of surrogate pairs, which JSON can name
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _lines(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(map(_compact, value)) + "\n]"
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _decode(hint: Any, value: Any, where: str) -> Any:  # noqa: PLR0911  # one return per kind of value
    """Builds a value of type `hint` from JSON; `where` is its path, for messages."""
    if hint is Any:
        return value
    if isinstance(hint, types.UnionType):  # only `X | None` occurs
        return None if value is None else _decode(typing.get_args(hint)[0], value, where)
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(hint, value, where)
    if isinstance(hint, enum.EnumType):
        if value in list(hint):
            return hint(value)
        raise _wrong_kind(f"one of {', '.join(map(str, hint))}", value, where)
    if hint is float and value is None:
        return _NULL.get(where.rpartition(".")[2], math.nan)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    if hint is np.ndarray and isinstance(value, list):
        return _decode_array(value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list) and (arguments[-1] is ... or len(value) == len(arguments)):
        hints = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        return tuple(
            _decode(one, item, f"{where}[{k}]") for k, (one, item) in enumerate(zip(hints, value, strict=True))
        )
    if origin is Mapping and isinstance(value, dict):
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    raise _wrong_kind(getattr(hint, "__name__", str(hint)), value, where)


def _decode_array(value: list[Any], where: str) -> np.ndarray:
    name = where.rpartition(".")[2]
    dtype = _DTYPES.get(name, float)
    if where.endswith(".parameters.mask"):
        dtype = float  # of a trigger, which may be see-through; of a layer it says what is cut
    if dtype is int and not _is_whole(value, 2 if where.endswith(("corners", "answers")) else 1):
        raise _wrong_kind("a list of whole numbers", value, where)
    try:
        return np.array(value, dtype=dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise _wrong_kind("a regular list of numbers", value, where) from error


def _is_whole(value: Any, axes: int) -> bool:
    """Whether it is a list of whole numbers, or of such lists."""
    if not axes:
        return type(value) is int
    return isinstance(value, list) and all(_is_whole(item, axes - 1) for item in value)


def _decode_dataclass(hint: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong_kind(f"an object ({hint.__name__})", value, where)
    hints = typing.get_type_hints(hint, localns={"np": np})  # the types import no NumPy at run time
    arguments = {}
    for item in dataclasses.fields(hint):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if item.name in value:
            arguments[item.name] = _decode(hints[item.name], value[item.name], f"{where}.{item.name}")
        elif required:
            raise JaxguardError(
                f"expected key {item.name!r}, got only {sorted(value)} at {where} of the report; "
                "write the report again: this one is incomplete"
            )
    return hint(**arguments)


def _wrong_kind(expected: str, value: Any, where: str) -> JaxguardError:
    shown = json.dumps(value)
    return JaxguardError(
        f"expected {expected}, got {shown[:60]}{'…' if len(shown) > 60 else ''} at {where}; "
        "write the report again: this one was changed or made by another program"
    )
