"""Code that configurations name: Keras layers, operators of TorchScript, modules beside a Hugging Face model."""

import builtins
import contextlib
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from jaxguard.checkpoints import header
from jaxguard.checkpoints.calls import Call, Trace
from jaxguard.checkpoints.pickle_danger import runs_code

MAX_CONFIG = 2**26
_SHOWN = 5
_KERAS = ("keras", "tensorflow", "tf_keras", "keras_hub", "keras_nlp", "keras_cv", "builtins")
_KERAS_FUNCTIONS = re.compile(
    r"(tf_)?keras(\.src|\.api|\._tf_keras)*\.(activations|initializers|losses|metrics|regularizers|constraints|ops|"
    r"backend|layers|optimizers|quantizers|dtype_policies|random)\b|tensorflow\.(math|nn|keras\.\w+)\b"
)
"""Modules of Keras in which no function touches files, the network or code."""

_NAME = re.compile(r"[\w.>]+")
_OPERATOR = re.compile(r"\bops\.(?!aten\b|prim\b|quantized\b|torchvision\b)(\w+)\.(\w+)")
_FILES = re.compile(r"\b(?:torch|ops\.aten)\.(save|from_file|load)\(")
_MODELS = ("config.json", "model_index.json")
_MODEL_KEYS = frozenset(("model_type", "auto_map", "architectures", "_class_name"))
_INTERNALS = re.compile(r"(_|\\x5f){2}\w{2,}(_|\\x5f){2}|\|\s*attr\s*\(|\b(import|eval|exec|popen|system)\s*\(")
SUFFIXES = frozenset((".json", ".jinja", ".jinja2", ".j2", ".template", ".yaml", ".yml", ".pb"))
"""Suffixes of files for `others`."""

_GRAPH_OPERATORS = re.compile(rb"[\x04-\x14]((?:Eager)?PyFunc|PyFuncStateless|ReadFile|WriteFile|LoadLibrary)\b")
_REMOTE = ("auto_map", "custom_pipelines")


def torchscript(text: str, member: str, trace: Trace) -> Iterator[str]:
    """Methods of TorchScript may only call torch's own operators, of which few touch files; yields notes."""
    for match in _FILES.finditer(text):
        trace.add(Call(f"torch.{match[1]}", " (by a method of TorchScript)", member, match.start()))
    found = list(dict.fromkeys(f"{namespace}.{name}" for namespace, name in _OPERATOR.findall(text)))
    if found:
        yield f"Methods in {member} call operators that are not torch's own: {', '.join(found[:_SHOWN])}."


def keras(content: bytes, member: str, trace: Trace) -> Iterator[str]:
    """Functions in the configuration of a Keras model, which is walked as data; yields notes."""
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        return
    for entry in _dictionaries(config):
        kind, module, inner = entry.get("class_name"), entry.get("module"), entry.get("config")
        registered = entry.get("registered_name")
        if not isinstance(kind, str):
            continue
        if kind.rpartition(">")[2] in ("Lambda", "__lambda__"):
            yield from _lambda(kind, inner, member, trace)
        elif kind == "function" and isinstance(inner, str):
            home = module if isinstance(module, str) else "builtins"
            is_known = _KERAS_FUNCTIONS.match(home) is not None
            # Functions of one's own are said to be of this module too.
            if home == "builtins" and not (hasattr(builtins, inner) and runs_code(home, inner)):
                yield f"The configuration names the function {header.shown(inner)}, which the loader must be given."
            elif not is_known:
                trace.add(Call(f"{home}.{inner}"[:200], " (named in the configuration)", member))
        elif isinstance(module, str) and module.split(".")[0] not in _KERAS:
            if runs_code(module, kind):
                trace.add(Call(f"{module}.{kind}"[:200], " (named in the configuration)", member))
            else:
                yield f"The class {module}.{kind} is not Keras's own: a loader imports it."
        elif module == "builtins" and hasattr(builtins, kind) and runs_code(module, kind):
            trace.add(Call(f"builtins.{kind}"[:200], " (named in the configuration)", member))
        elif not module and (">" in kind or (isinstance(registered, str) and ">" in registered)):
            yield f"The class {registered or kind} is not Keras's own: a loader must be given it (custom_objects)."


def _lambda(kind: str, inner: Any, member: str, trace: Trace) -> Iterator[str]:
    """A layer whose function is code in the file, or the name of one."""
    settings = inner if isinstance(inner, dict) else {}
    sources = [settings.get(name) for name in ("function", "output_shape", "mask")]
    is_marshalled = kind == "__lambda__" or any(
        isinstance(source, list)
        or (isinstance(source, dict) and source.get("class_name") == "__lambda__")
        or (isinstance(source, str) and (settings.get(f"{name}_type") == "lambda" or not _NAME.fullmatch(source)))
        for name, source in zip(("function", "output_shape", "mask"), sources, strict=True)
        if name == "function" or not _is_shape(source)
    )
    if is_marshalled:
        name = settings.get("name")
        told = f"(marshalled code of a layer {header.shown(name)})" if name else "(marshalled code)"
        trace.add(Call("keras.layers.Lambda", told, member))
    else:
        yield f"A Lambda layer calls the function {header.shown(sources[0])}, which the loader must be given."


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(item is None or isinstance(item, int | list) for item in value)


def others(content: bytes, suffix: str, member: str) -> Iterator[str]:
    """Templates, as text or in JSON, and graphs of TensorFlow; yields notes."""
    if suffix == ".pb":
        yield from _graph(content, member)
    else:
        yield from _template(content.decode("utf-8", "replace"), member)


def _template(text: str, member: str) -> Iterator[str]:
    """Those of chats are rendered by whatever runs the model."""
    with contextlib.suppress(ValueError, RecursionError):
        text = "\n".join(_texts(json.loads(text)))
    if ("{{" in text or "{%" in text) and (found := _INTERNALS.search(text)):
        yield (
            f"A template in {member} reaches for {header.shown(found[0])}, Python's internals: rendered outside of a "
            "sandbox it runs code."
        )


def _graph(content: bytes, member: str) -> Iterator[str]:
    found = sorted({match[1].decode() for match in _GRAPH_OPERATORS.finditer(content)})
    if found:
        yield f"The graph in {member} has operators that call Python or touch files: {', '.join(found)}."


def _texts(found: Any) -> Iterator[str]:
    pending = [found]
    while pending:
        here = pending.pop()
        if isinstance(here, str):
            yield here
        pending += here.values() if isinstance(here, dict) else here if isinstance(here, list) else ()


def _dictionaries(found: Any) -> Iterator[dict[str, Any]]:
    pending = [found]
    while pending:
        here = pending.pop()
        if isinstance(here, dict):
            yield here
        pending += here.values() if isinstance(here, dict) else here if isinstance(here, list) else ()


def beside(folder: pathlib.Path) -> Iterator[str]:
    """Code in the folder of a Hugging Face model, which runs where `trust_remote_code` is set; yields notes."""
    is_model = False
    for path in sorted((*folder.glob("*config*.json"), *folder.glob("model_index.json"))):
        fields = _fields(path)
        is_model = is_model or (path.name in _MODELS and not _MODEL_KEYS.isdisjoint(fields))
        for key in _REMOTE:
            named = ", ".join(_modules(fields.get(key)))
            if named:
                yield f"With trust_remote_code a loader would run {named} ({key} in {path.name})."
    sources = sorted(file.name for file in folder.glob("*.py"))
    if sources and is_model:
        more = f" and {len(sources) - _SHOWN} more" if len(sources) > _SHOWN else ""
        shown = ", ".join(sources[:_SHOWN])
        yield f"Python files beside the model: {shown}{more}; with trust_remote_code a loader would run them."


def _fields(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file() or path.stat().st_size > MAX_CONFIG:
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _modules(mapped: Any) -> list[str]:
    """The first values of a map of classes, which may be lists of classes."""
    if isinstance(mapped, str):
        return [mapped]
    values = mapped.values() if isinstance(mapped, dict) else ()
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return [str(one) for one in flat if one is not None][:_SHOWN]
