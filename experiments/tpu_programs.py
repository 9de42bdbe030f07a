"""The hot programs of jaxguard as they are compiled for some chips: the product's own functions, on shapes alone.

`PROGRAMS` names them; each entry gives a jitted function of the product and its arguments as
`jax.ShapeDtypeStruct`s on the chips. Sizes are the product's defaults for the chips that
`jaxguard.execution.aimed_at` names.
"""

import dataclasses
import functools
import inspect
import math
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

from jaxguard import checkpoints, evaluation, execution, memory, meshes, models, training
from jaxguard.defenses.shapley import AttackValue
from jaxguard.fleet import programs, stream
from jaxguard.fleet.local import Settings
from jaxguard.fleet.structure import Structure, structure_of
from jaxguard.graph import Coalitions
from jaxguard.inversion import ascent, trigger
from jaxguard.inversion.descent import Descent
from jaxguard.inversion.trigger_models import Patch
from jaxguard.kernels import correlation, transport
from jaxguard.kernels.shapley import sampling
from jaxguard.kernels.transport import entropic
from jaxguard.kernels.transport.problem import Problem
from jaxguard.models import layouts
from jaxguard.scores import responses
from jaxguard.training import abreast, descent
from jaxguard.training.population import Own, OwnStep
from jaxguard.types import Batch
from jaxguard.weight_change import unlearning

IMAGES, CLASSES = (32, 32, 3), 10
LARGE = ("resnet50", "vit-base-16")
"""Models of 224 pixels and a thousand classes."""

SEARCHED = 16
"""Images that a trigger search of ten classes works on."""


@dataclass(frozen=True)
class Case:
    """A program to compile.

    Attributes:
        jitted: function of the product.
        arguments: shapes on the chips, static ones as they are.
        options: static arguments by name.
        work: what it does, for the table.
        turns: what the figures count, where the program is a loop whose length is known only when it runs.
        weights: bytes of weights that it must read at least once; 0 where that says nothing.
        more: further entries of the row.
    """

    jitted: Any
    arguments: tuple[Any, ...]
    work: str
    options: dict[str, Any] = field(default_factory=dict)
    turns: str = ""
    weights: int = 0
    more: dict[str, Any] = field(default_factory=dict)


def on_chip(tree: Any) -> Any:
    """Shapes of arrays on the first chip."""
    place = jax.sharding.SingleDeviceSharding(execution.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)


def spec(*shape: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return on_chip(jax.ShapeDtypeStruct(shape, dtype))


def key() -> Any:
    return on_chip(jax.eval_shape(lambda: jax.random.key(0)))


def model_of(name: str, *, dtype: str | None = None) -> models.Model:
    size, classes = ((224, 224, 3), 1000) if name in LARGE else (IMAGES, CLASSES)
    return models.build(name, num_classes=classes, input_shape=size, dtype=dtype)


# ---------------------------------------------------------------- fleet


def stored(name: str) -> Structure:
    """Of checkpoints in torch's layout."""
    listed = layouts.expected(model_of(name), "torch").items()
    leaves = {leaf: checkpoints.LeafSpec(one.shape, np.dtype(np.float32)) for leaf, one in listed}
    first = dict(zip(leaves, np.cumsum([0, *(one.nbytes for one in leaves.values())]).tolist(), strict=False))
    return structure_of(
        checkpoints.Checkpoint(
            name, "safetensors", leaves, {}, pathlib.Path(name), lambda names: iter(()), first_bytes=first
        )
    )


def fleet(name: str) -> Case:
    """A stack of checkpoints, as a scan of a store fills it."""
    structure = stored(name)
    made = programs.scorer(structure, Settings())
    rows = stream._most_rows(structure, execution.staging_bytes())
    if rows == 0:
        raise LookupError(
            f"a stack of {structure.nbytes / 1e6:.0f} MB rows is over the scan's memory: kernel by kernel"
        )
    mesh = meshes.device_mesh()
    place = NamedSharding(mesh, PartitionSpec(meshes.DEVICES))
    share = rows // mesh.size
    width = programs.width_of(share, execution.checkpoints_at_once())
    return Case(
        made.program,
        (
            jax.ShapeDtypeStruct((rows, structure.length), np.float32, sharding=place),
            jax.ShapeDtypeStruct((mesh.size,), np.int32, sharding=place),
        ),
        f"{rows} checkpoints of {structure.nbytes / 1e6:.1f} MB, {share} on a chip",
        turns=f"{width} checkpoint{'s' * (width > 1)} on a chip",
        weights=width * structure.nbytes,
        more={"checkpoints_per_turn": width},
    )


# ---------------------------------------------------------------- coalitions


def coalitions(name: str, images: int = 100, chunk: int = 32) -> Case:
    """One sample of Shapley values, a pair of permutations, as `--defense shapley` draws them."""
    model = model_of(name)
    game = Coalitions(model.network(model.shapes()).graph)
    variables = on_chip(model.shapes())
    start = on_chip(jax.eval_shape(game.start, variables, spec(images, *model.input_shape)))
    value = Partial(AttackValue(game, 0, "probability"), variables, start)
    rows = sampling.rows("antithetic", chunk)[1]
    return Case(
        sampling._sample,
        (value, key(), spec(dtype=np.int32), spec(), spec()),
        f"a pair of permutations of {game.players:,} channels, {images} images, {chunk} coalitions of each at once",
        options={"players": game.players, "pairing": "antithetic", "chunk": chunk},
        turns="each segment of the network once",
        more={
            "folds": list(game.folds(rows, start.images)),
            "useful_share": rounded(useful_share(game, start.images, chunk), 2),
        },
    )


def useful_share(game: Coalitions, images: jax.ShapeDtypeStruct, chunk: int) -> float:
    """Share of the work that is needed, over a pair of permutations: rounds of a fold are filled up.

    A segment counts by the numbers that its equations read and make, products of kernels by their multiplications.
    """
    program = game.graph.program_at(images)
    costs = [sum(_cost(program, number) for number in segment.equations) for segment in game._segments]
    order = np.random.default_rng(0).permutation(game.players)
    folds = game.folds(2 * chunk, images)
    needed = done = 0.0
    for first in range(0, game.players, chunk):
        gates = np.concatenate([_removed(one, first, chunk, game.players) for one in (order, order[::-1])])
        new = np.arange(len(gates)) == 0
        for cost, own, fold in zip(costs, game.split(gates), folds, strict=True):
            new = new | np.append(True, (own[1:] != own[:-1]).any(1))
            needed += cost * new.sum()
            done += cost * fold * -(-new.sum() // fold)
    return needed / done


def _removed(order: np.ndarray, first: int, chunk: int, players: int) -> np.ndarray:
    """Gates `[chunk, N]` as one after the other leaves."""
    left = np.argsort(order)[None] > np.minimum(first + np.arange(chunk), players - 1)[:, None]
    return left.astype(np.float32)


def _cost(program: Any, number: int) -> float:
    """Of an equation: multiplications of a convolution or product, else the numbers that it makes."""
    equation = program.equations[number]
    made = sum(math.prod(program.shapes[value]) for value in equation.outputs)
    if equation.primitive.name == "conv_general_dilated":
        kernel, axes = program.shapes[equation.inputs[1]], equation.params["dimension_numbers"].rhs_spec
        return made * math.prod(kernel) / kernel[axes[0]]
    if equation.primitive.name == "dot_general":
        (axes, _), _ = equation.params["dimension_numbers"]
        return made * math.prod(program.shapes[equation.inputs[0]][axis] for axis in axes)
    return made


# ---------------------------------------------------------------- inversion


def _climb(name: str) -> tuple[Any, Any]:
    model = model_of(name)
    shape = model.input_shape
    bytes_each = memory.of_gradient(model.apply_fn, model.shapes(), shape)
    number = execution.stamped_images_at_once(bytes_each) // SEARCHED
    masks, patterns = spec(number, *shape[:2], 1), spec(number, *shape)
    setting = ascent._Setting(
        masks, spec(number, SEARCHED, *shape), spec(number, SEARCHED), spec(number, SEARCHED, dtype=np.int32), spec()
    )
    state = ascent._State(patterns, patterns, patterns, spec(number))
    return Partial(ascent._Climb(model.apply_fn, Patch()), on_chip(model.shapes()), setting), state


def climb(name: str, *, loop: bool) -> Case:
    step, state = _climb(name)
    candidates = state.free.shape[0]
    return _descended(step, state, f"{candidates} patches on {SEARCHED} images each", loop=loop)


def screen(name: str) -> Case:
    model = model_of(name)
    shape = model.input_shape
    size = execution.stamped_images_at_once(memory.of_forward(model.apply_fn, model.shapes(), shape))
    few = size // SEARCHED + 3
    candidates = ascent.Candidates(spec(few, *shape[:2], 1), spec(few, *shape))
    rows = spec(size, dtype=np.int32)
    stamped = ascent._Stamped(candidates, spec(SEARCHED, *shape), rows, rows)
    variables = on_chip(model.shapes())
    return Case(ascent._answers, (model.apply_fn, Patch(), variables, stamped), f"logits of {size:,} stamped images")


def cleanse(name: str, *, loop: bool) -> Case:
    """Neural Cleanse with the defaults of `inversion.invert`, on 1,000 images."""
    model, images = model_of(name), 1000
    defaults = {name: one.default for name, one in inspect.signature(trigger.invert).parameters.items()}
    batch = defaults["batch_size"]
    epoch_steps = int(np.clip(training.steps_per_epoch(images, batch), *trigger.EPOCH_STEPS))
    known = {"apply_fn": model.apply_fn, "epoch_steps": epoch_steps}
    step = Descent(**{one.name: known.get(one.name, defaults[one.name]) for one in dataclasses.fields(Descent)})
    classes = min(CLASSES, execution.stamped_images_at_once() // batch)
    start = functools.partial(step.start, shape=model.input_shape)
    state = on_chip(jax.eval_shape(lambda key: start(jax.numpy.arange(classes), key=key), jax.random.key(0)))
    data = Batch(spec(images, *model.input_shape), spec(images, dtype=np.int32))
    partial = Partial(step, on_chip(model.shapes()), data, key())
    return _descended(partial, state, f"masks of {classes} classes on {batch} images each", loop=loop)


def _descended(step: Any, state: Any, work: str, *, loop: bool, trains: bool = False) -> Case:
    index = spec(dtype=np.int32)
    if loop:
        turns = "one step"
        work = f"{work}; {descent.CHUNK} steps"
        return Case(descent.CHUNK_OF_STEPS[trains], (step, state, index, index), work, turns=turns)
    return Case(descent.STEP[trains], (step, state, index), f"{work}; one step")


# ---------------------------------------------------------------- training


def train(name: str, *, loop: bool, dtype: str | None = None, batch: int = 128) -> Case:
    """The recipe of `training.fit`, on 50,000 images on the chip."""
    model = model_of(name, dtype=dtype)
    optimizer = training.sgd(training.cosine(0.1, 10_000), momentum=0.9, weight_decay=5e-4)
    step = training.Step(training.CrossEntropyGradient(model.train_fn), optimizer, batch, training.CropFlip())
    return _trained(step, model, 50_000, f"{batch} images in {dtype or 'float32'}, crops and flips", loop=loop)


def population(name: str, networks: int = 64, batch: int = 64) -> Case:
    """`training.fit_many` of small networks, each with rows and a rate of its own, of 2,000 images."""
    model, images = model_of(name), 2000
    optimizer = training.sgd(training.cosine(1.0, 1000), momentum=0.9, weight_decay=0.0)
    step = training.Step(training.CrossEntropyGradient(model.train_fn), optimizer, batch)
    data = Batch(spec(images, *model.input_shape), spec(images, dtype=np.int32))

    def stacked(one: Any) -> Any:
        return jax.tree.map(lambda leaf: spec(networks, *leaf.shape, dtype=leaf.dtype), one)

    own = Own(jax.eval_shape(lambda: jax.random.key(0)), spec(images, dtype=np.int32), spec(), spec())
    state = stacked(jax.eval_shape(step.init, model.shapes(), data))
    partial = Partial(abreast._SideBySide(OwnStep(step)), data, stacked(own))
    return _descended(partial, state, f"{networks} networks, {batch} images each", loop=True)


def unlearn(name: str) -> Case:
    """TSBD's first stage: gradient ascent on the defender's images."""
    model = model_of(name)
    step = unlearning._ascent(model.network(model.shapes()), 1e-4, 0.9, 256, None)
    return _trained(step, model, 2500, "ascent on 256 clean images", loop=False)


def _trained(step: training.Step, model: models.Model, images: int, work: str, *, loop: bool) -> Case:
    data = Batch(spec(images, *model.input_shape), spec(images, dtype=np.int32))
    state = on_chip(jax.eval_shape(step.init, model.shapes(), data))
    return _descended(Partial(step, data, key()), state, work, loop=loop, trains=True)


# ---------------------------------------------------------------- the others


def response(name: str) -> Case:
    model = model_of(name)
    operand = on_chip(model.shapes()), spec(responses.IMAGES, *model.input_shape)
    labels = spec(CLASSES, dtype=np.int32)
    arguments = (responses.ClassResponse(model.apply_fn), meshes.device_mesh(), operand, labels)
    work = f"{responses.IMAGES} noise images, {CLASSES} classes"
    return Case(meshes._every_chunk, arguments, work, turns="one class")


def evaluated(name: str, batch: int = 500) -> Case:
    """Classes of a test set, batch by batch."""
    model = model_of(name)
    network = model.network(on_chip(model.shapes()))
    chunks = spec(1, batch, *model.input_shape)
    arguments = (evaluation._classes, meshes.device_mesh(), network, chunks)
    return Case(meshes._every_chunk, arguments, f"classes of {batch} images")


def correlated(suspects: int = 64, probes: int = 800) -> Case:
    arguments = (spec(probes, CLASSES), spec(suspects, probes, CLASSES))
    return Case(correlation.distances, arguments, f"{suspects} suspects on {probes} probes", options={"halved": True})


def sinkhorn(channels: int = 512, problems: int = 7) -> Case:
    masses, ties = spec(problems, channels), spec(problems, channels, dtype=np.int32)
    given = Problem(spec(problems, channels, channels), masses, masses, ties, ties)
    work = f"{problems} problems of {channels} channels"
    return Case(entropic.sinkhorn, (given,), work, turns="ten iterations")


def costs(channels: int = 512) -> Case:
    row = spec(channels, channels * 9)
    return Case(transport.distances, (row, row), f"costs between {channels} kernels of 3x3x{channels}")


@dataclass(frozen=True)
class Program:
    """An entry of the table.

    Attributes:
        make: the case, for the chips aimed at.
        chips: how many.
        is_quick: compiled in a quarter of a minute or less, on two idle cores.
    """

    make: Callable[[], Case]
    chips: int = 1
    is_quick: bool = False


PROGRAMS: dict[str, Program] = {
    **{
        f"fleet scoring, {name}, {chips} chip{'s' * (chips > 1)}": Program(
            functools.partial(fleet, name), chips, is_quick=name == "resnet20"
        )
        for name in ("resnet20", "preactresnet18", "vit-base-16")
        for chips in (1, 8)
    },
    **{f"evaluation, {name}": Program(functools.partial(evaluated, name)) for name in ("preactresnet18", *LARGE)},
    "coalitions, resnet20": Program(functools.partial(coalitions, "resnet20")),
    "coalitions, preactresnet18": Program(functools.partial(coalitions, "preactresnet18")),
    **{
        f"{what}, {name}": Program(functools.partial(make, name))
        for name in ("resnet20", "preactresnet18", *LARGE)
        for what, make in {
            "trigger search, screen": screen,
            "trigger search, climb": functools.partial(climb, loop=False),
            "responses": response,
        }.items()
    },
    **{
        f"neural cleanse, {name}": Program(functools.partial(cleanse, name, loop=False))
        for name in ("resnet20", "preactresnet18")
    },
    "trigger search, chunk of a climb, resnet20": Program(functools.partial(climb, "resnet20", loop=True)),
    "training step, preactresnet18, float32": Program(functools.partial(train, "preactresnet18", loop=False)),
    "training step, preactresnet18, bfloat16": Program(
        functools.partial(train, "preactresnet18", loop=False, dtype="bfloat16")
    ),
    "training chunk, resnet20, float32": Program(functools.partial(train, "resnet20", loop=True)),
    "training chunk, 64 of cnn:width=0.5": Program(functools.partial(population, "cnn:width=0.5")),
    "unlearning step, preactresnet18": Program(functools.partial(unlearn, "preactresnet18")),
    "correlation": Program(correlated, is_quick=True),
    "transport costs": Program(costs, is_quick=True),
    "sinkhorn": Program(sinkhorn, is_quick=True),
}
"""Name in the table -> program."""


def rounded(value: float, digits: int = 4) -> float:
    """So many significant digits."""
    return value if value == 0 else round(value, digits - 1 - math.floor(math.log10(abs(value))))
