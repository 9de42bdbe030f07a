"""Identifies a checkpoint's architecture by the names and shapes of its leaves, without reading any.

The head gives the number of classes, the stem the image's channels, the head's fan-in the width. An architecture fits
if it then expects exactly the leaves of the checkpoint.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from jaxguard.errors import ArchitectureError, CheckpointError, DataError
from jaxguard.models import architecture, layouts
from jaxguard.models.dialects import Shape
from jaxguard.models.layers import Classifier
from jaxguard.models.layouts import Layout, Leaf
from jaxguard.models.model import Model

LISTED = 4  # leaves that a message lists
CLOSE = 0.5  # least share of common leaves to call an architecture close


class HasShape(Protocol):
    """An array, or the description of one that was not read."""

    @property
    def shape(self) -> Shape:
        """Sizes of its axes."""
        ...


class Identification(NamedTuple):
    """The result of identifying a checkpoint.

    Attributes:
        model: architecture with width, classes and input shape.
        layout: how its leaves are named and laid out.
        names: leaf of the checkpoint -> path in the model's variables.
    """

    model: Model
    layout: Layout
    names: Mapping[str, str]


class _Attempt(NamedTuple):
    model: Model
    layout: Layout
    width: float | None
    misfits: list[str]
    share: float


def identify(
    leaves: Mapping[str, HasShape],
    *,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Identification:
    """Finds the architecture that all leaves of a checkpoint fit.

    Args:
        leaves: arrays, or the `leaves` of an opened checkpoint, by name.
        input_shape: `(H, W, C)` of one image; by default from the leaves, or else the architecture.
        mean: see `jaxguard.models.build`.
        std: see `jaxguard.models.build`.

    Returns:
        The model, its layout, and the path of each leaf.

    Raises:
        ArchitectureError: no architecture fits; the message names the closest and the differing leaves.
        DataError: an invalid `input_shape`, `mean` or `std`.

    >>> from jaxguard.checkpoints import flatten
    >>> model = architecture.build("resnet20:width=0.5", num_classes=7, input_shape=(32, 32, 3))
    >>> found = identify(layouts.expected(model, "torch"))
    >>> found.model.spec, found.model.num_classes, found.layout, found.names["bn1.running_var"]
    ('resnet20:width=0.5', 7, 'torch', 'batch_stats/bn1/var')
    """
    attempt = _best(leaves, input_shape, same_names=True)
    if attempt is None or attempt.misfits:
        attempt = _best(leaves, input_shape, same_names=False)
    if attempt is None or attempt.misfits:
        raise _unknown(leaves, attempt)
    model, layout = attempt.model, attempt.layout
    shape = model.input_shape if input_shape is None else input_shape
    model = architecture.build(model.spec, num_classes=model.num_classes, input_shape=shape, mean=mean, std=std)
    expected = layouts.expected(model, layout)
    names = {given: expected[name].path for name, given in original_names(model, leaves).items()}
    return Identification(model, layout, names)


def _best(leaves: Mapping[str, HasShape], input_shape: Sequence[int] | None, *, same_names: bool) -> _Attempt | None:
    """The architecture that fits, or else the closest."""
    attempts = []
    for spec in _candidates(leaves):
        attempt = _attempt(spec, leaves, input_shape, same_names=same_names)
        attempts += [attempt] if attempt is not None else []
        if attempt is not None and not attempt.misfits and attempt.width == architecture.parse(spec)[1].get("width"):
            return attempt  # a published width; the same leaves may be another family's at an odd one
    return max(attempts, key=lambda attempt: (not attempt.misfits, attempt.share), default=None)


def _unknown(leaves: Mapping[str, HasShape], closest: _Attempt | None) -> ArchitectureError:
    expected = (
        f"expected the leaves of one of {len(architecture.ARCHITECTURES)} architectures (jaxguard.models.ARCHITECTURES)"
    )
    if closest is None or closest.share < CLOSE:
        first = ", ".join(repr(name[:80]) for name in list(leaves)[:LISTED])
        return ArchitectureError(
            f"{expected}, got {len(leaves)} others: {first}, ...; pass --arch, or your own model with --apply"
        )
    return ArchitectureError(
        f"{expected}; {closest.model.spec} is closest, but {listed(closest.misfits)}; pass your own model with --apply"
    )


def infer(
    spec: str,
    leaves: Mapping[str, HasShape],
    *,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Model:
    """Builds the model of a checkpoint: the head gives the classes, the stem the image channels.

    Args:
        spec: architecture, see `jaxguard.models.build`.
        leaves: arrays, or the `leaves` of an opened checkpoint, by name.
        input_shape: `(H, W, C)` of one image; by default from the leaves, or else the architecture.
        mean: see `jaxguard.models.build`.
        std: see `jaxguard.models.build`.

    Returns:
        A model to `bind` the leaves to, which checks that all of them fit.

    Raises:
        ArchitectureError: an invalid specification.
        CheckpointError: head or stem are missing or not kernels.
        DataError: an invalid `input_shape`, `mean` or `std`.
    """
    probe = _probe(spec, input_shape)
    layout, found = layouts.recognize(leaves, probe.module)
    num_classes = _kernel(probe, probe.module.head, found, layout)[-1]
    told = _image_shape(probe, found, layout, input_shape and input_shape[:2])
    name, options = architecture.parse(spec)
    spec = architecture.canonical(name, {**options, **layouts.options_of(probe.module, layout)})
    return architecture.build(spec, num_classes=num_classes, input_shape=input_shape or told, mean=mean, std=std)


def original_names(model: Model, leaves: Mapping[str, object]) -> dict[str, str]:
    """The names a checkpoint gives its leaves, by those the model's layout has for them: without wrappers' prefixes."""
    return layouts.recognize({name: name for name in leaves}, model.module)[1]


def misfits(model: Model, expected: Mapping[str, Leaf], found: Mapping[str, HasShape]) -> list[str]:
    """What keeps leaves from fitting a model, one clause each, the most informative first."""
    largest_first = sorted(expected.items(), key=lambda item: -len(item[1].shape))  # kernels before vectors
    clauses = [
        f"leaf {name!r} is {found[name].shape}, {model.spec} expects {leaf.shape}"
        for name, leaf in largest_first
        if name in found and found[name].shape != leaf.shape
    ]
    clauses += [f"leaf {name!r} {leaf.shape} is missing" for name, leaf in largest_first if name not in found]
    clauses += [
        f"leaf {name[:80]!r} {leaf.shape} is not part of {model.spec}"
        for name, leaf in found.items()
        if name not in expected
    ]
    return clauses


def require_fit(model: Model, expected: Mapping[str, Leaf], found: Mapping[str, HasShape], place: str) -> None:
    """Refuse leaves that do not fit, and say what would.

    Raises:
        CheckpointError: the first misfits and, where it can be found, the specification that fits.
    """
    clauses = misfits(model, expected, found)
    if clauses:
        raise CheckpointError(f"{place}{listed(clauses)}; {_remedy(model, found)}")


def listed(clauses: Sequence[str]) -> str:
    """The first clauses of a message, and how many more there are."""
    more = f"; and {len(clauses) - LISTED} more" if len(clauses) > LISTED else ""
    return "; ".join(clauses[:LISTED]) + more


def _remedy(model: Model, found: Mapping[str, HasShape]) -> str:
    """What would make the leaves fit, found by trying every architecture."""
    specs = dict.fromkeys([model.spec, *_candidates(found)])
    for same_names, spec in itertools.product((True, False), specs):
        attempt = _attempt(spec, found, model.input_shape, same_names=same_names)
        if attempt is None or attempt.misfits:
            continue
        fit, advice = attempt.model, []
        if fit.spec.split(":")[0] != model.spec.split(":")[0]:
            advice.append(f"is it a {fit.spec}? pass --arch {fit.spec}")
        elif fit.spec != model.spec:
            advice.append(f"was it trained with {fit.spec.partition(':')[2] or 'width=1'}? pass --arch {fit.spec}")
        if fit.num_classes != model.num_classes:
            advice.append(f"it has {fit.num_classes} classes, pass num_classes={fit.num_classes}")
        if fit.input_shape != model.input_shape:
            advice.append(f"it reads other images, pass input_shape={fit.input_shape}")
        return "; ".join(advice)
    known = ", ".join(architecture.ARCHITECTURES)
    return f"no architecture fits of {known}; was the network changed or renamed?"


def _candidates(leaves: Mapping[str, HasShape]) -> Iterator[str]:
    """Every architecture, and those whose depth and width the leaves determine."""
    _, found = layouts.recognize(leaves)
    yield from architecture.variants()
    names = [name.removeprefix("params/").replace("/", ".").replace("_", ".") for name in found]
    blocks = len({match[0] for name in names if (match := re.match(r"block1\.layer\.\d+\.", name))})
    if blocks:
        first = dict(zip(names, found.values(), strict=True)).get("block1.layer.0.bn2.bias")
        if first is not None and len(first.shape) == 1 and first.shape[0] >= 16:
            yield f"wideresnet-{6 * blocks + 4}-{first.shape[0] // 16}"
    units = [leaf.shape for name, leaf in sorted(found.items()) if re.fullmatch(r"(params/)?fc\d+[./](bias)", name)]
    if units and all(len(shape) == 1 and shape[0] > 0 for shape in units):
        yield "mlp:hidden=" + "x".join(str(shape[0]) for shape in units)


def _attempt(
    spec: str, leaves: Mapping[str, HasShape], input_shape: Sequence[int] | None, *, same_names: bool
) -> _Attempt | None:
    """The architecture at the width that explains the leaves best.

    None if the stem does not fit or, with `same_names`, if at width one it names its leaves otherwise, which spares
    tracing it at every width. Landmarks rule out most architectures without a trace, which takes a tenth of a second.
    """
    try:
        name, options = architecture.parse(spec)
        probe = _probe(spec, input_shape)
        layout, found = layouts.recognize(leaves, probe.module)
        if any(_name(probe, layer, layout) not in found for layer in {*probe.module.landmarks} - {probe.module.head}):
            return None
        if same_names and any(_name(probe, layer, layout) in found for layer in _beyond(probe.module.landmarks)):
            return None
        shape = _image_shape(probe, found, layout, input_shape and input_shape[:2])
        head = found.get(_name(probe, probe.module.head, layout))
        num_classes = _kernel(probe, probe.module.head, found, layout)[-1] if head is not None else 1
        # With the classes and images of the result: at width one it need not be traced again.
        dialect = architecture.canonical(name, {**options, **layouts.options_of(probe.module, layout)})
        probe = architecture.build(dialect, num_classes=num_classes, input_shape=shape)
        if same_names and layouts.expected(probe, layout).keys() != found.keys():
            return None
        attempts = []
        for width in _candidate_widths(probe, found, layout) if "width" in options else (None,):
            given = {} if width is None else {"width": width}
            chosen = {**options, **layouts.options_of(probe.module, layout), **given}
            model = architecture.build(architecture.canonical(name, chosen), num_classes=num_classes, input_shape=shape)
            expected = layouts.expected(model, layout)
            clauses = misfits(model, expected, found)
            same = sum(name in found and found[name].shape == leaf.shape for name, leaf in expected.items())
            attempts.append(_Attempt(model, layout, width, clauses, same / len(expected.keys() | found.keys())))
    except (ArchitectureError, CheckpointError, DataError):  # no such stem, too small images, odd heads
        return None
    return min(attempts, key=lambda attempt: len(attempt.misfits), default=None)


def _beyond(landmarks: Sequence[str]) -> list[str]:
    """What the next block of each kind would be called; a network that has it is a deeper one.

    >>> _beyond(["conv1", "layer1_0/conv2", "blocks_0/fc1", "blocks_11/fc1", "linear"])
    ['layer1_1/conv2', 'blocks_12/fc1']
    """
    last: dict[tuple[str, str], int] = {}
    for layer in landmarks:
        if match := re.fullmatch(r"(\D.*?)(\d+)(/.+)", layer):
            kind = match[1], match[3]
            last[kind] = max(int(match[2]), last.get(kind, 0))
    return [f"{block}{number + 1}{rest}" for (block, rest), number in last.items()]


def _probe(spec: str, input_shape: Sequence[int] | None) -> Model:
    return architecture.build(spec, num_classes=1, input_shape=input_shape or (*Classifier.default_size, 1))


def _candidate_widths(model: Model, found: Mapping[str, HasShape], layout: Layout) -> list[float]:
    """Width multipliers that explain the head's fan-in or the stem's channels, simple numbers first."""
    kernels = model.shapes()["params"]
    widths = []
    for layer, axis in ((model.module.head, -2), (model.module.stem, -1)):
        if _name(model, layer, layout) in found:
            ratio = _kernel(model, layer, found, layout)[axis] / kernels[layer]["kernel"].shape[axis]
            widths += [round(model.module.width * ratio, digits) for digits in (2, 3, 12)]
    return [width for width in dict.fromkeys(widths) if width > 0]


def _image_shape(
    model: Model, found: Mapping[str, HasShape], layout: Layout, size: Sequence[int] | None
) -> tuple[int, int, int]:
    """`(H, W, C)`: size as given, or from the leaves, or else the architecture; `C` from the stem."""
    fan_in = _kernel(model, model.module.stem, found, layout)[-2]
    if model.module.stem in model.module.flattened(model.input_shape):  # reads all pixels at once
        return _flattened_shape(model, fan_in, size)

    def shape_of(path: str) -> Shape | None:
        leaf = found.get(layouts.name_of(f"params/{path}", layout, model.module))
        return None if leaf is None else leaf.shape

    height, width = size or model.module.input_size(shape_of) or model.module.default_size
    return height, width, fan_in


def _flattened_shape(model: Model, fan_in: int, size: Sequence[int] | None) -> tuple[int, int, int]:
    """The shape of an image of `fan_in` numbers: of the given size, or square, grey or RGB."""
    if size:
        height, width = size
        if fan_in % (height * width) == 0:
            return height, width, fan_in // (height * width)
        raise CheckpointError(
            f"expected a first layer that reads a multiple of {height}x{width} pixels for {model.spec}, got {fan_in} "
            "numbers; pass input_shape=(H, W, C)"
        )
    for channels in (1, 3):
        side = math.isqrt(fan_in // channels)
        if side and side * side * channels == fan_in:
            return side, side, channels
    raise CheckpointError(
        f"expected a first layer that reads a square image, grey or RGB, for {model.spec}, got {fan_in} numbers; "
        "pass input_shape=(H, W, C)"
    )


def _name(model: Model, layer: str, layout: Layout) -> str:
    return layouts.name_of(f"params/{layer}/kernel", layout, model.module)


def _kernel(model: Model, layer: str, found: Mapping[str, HasShape], layout: Layout) -> Shape:
    """Shape of a layer's kernel in the variables."""
    leaf = found.get(_name(model, layer, layout))
    if leaf is None or len(leaf.shape) not in (2, 4) or min(leaf.shape) == 0:
        raise CheckpointError(
            f"leaf {_name(model, layer, layout)!r} is missing or not a kernel, {model.spec} needs it; "
            f"the checkpoint has {', '.join(repr(name[:80]) for name in list(found)[:LISTED])}, ...; "
            f"choose the architecture it was trained with: {', '.join(architecture.ARCHITECTURES)}"
        )
    return layouts.from_layout(leaf.shape, layout)
