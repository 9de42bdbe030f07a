"""The plan of the reference population: index -> the configuration of one network, the same on every machine.

Networks are planned in pairs. The two of a pair have architecture, data, regime and kind of attack in common, and
differ in weights, images, target and the details of the trigger. The even one belongs to the half that makes the
reference, the odd one to the half that judges it: both halves hold the same mixture, whatever part of the plan has been
trained so far.
Cheap networks are first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from jaxguard.attacks import ATTACKS, Attack
from jaxguard.attacks.badnets import Corner
from jaxguard.attacks.letter import Letter

SEED = 2026


@dataclass(frozen=True)
class Task:
    """What networks are trained to do.

    Attributes:
        pack: data set.
        size: edge of the images in pixels.
        images: training images of each network.
        classes: that are kept, the most frequent ones; None for all.
        flips: whether mirrored images are of the same class.
        pairs: whether networks are right often enough for a backdoor between two classes to show.
    """

    pack: str
    size: int
    images: int
    classes: int | None = None
    flips: bool = False
    pairs: bool = True


TASKS = {
    "digits": Task("digits", 16, 1150),
    "mnist": Task("mnist", 28, 4000),
    "fashion": Task("fashion_mnist", 28, 4000, flips=True),
    "gtsrb10": Task("gtsrb", 24, 1600, classes=10),
    "gtsrb": Task("gtsrb", 32, 4000, pairs=False),
    "cifar10": Task("cifar10", 32, 6000, flips=True, pairs=False),
    "cifar100": Task("cifar100", 32, 640, classes=20, flips=True, pairs=False),
    "faces": Task("orl", 28, 240, flips=True, pairs=False),
}


@dataclass(frozen=True)
class Structure:
    """What one compiled trainer is for.

    Attributes:
        task: row of `TASKS`.
        arch: specification of `jaxguard.models`.
        pairs: of clean networks, and as many of backdoored ones.
        steps: of a standard training, of 64 images each.
        rate: first learning rate.
        adam: whether it is Adam's, instead of SGD's with momentum.
        wave: 0 is trained first.
    """

    task: str
    arch: str
    pairs: int
    steps: int
    rate: float
    adam: bool = False
    wave: int = 0

    @property
    def family(self) -> str:
        """The architecture without its options."""
        return self.arch.partition(":")[0]


CNN, VGG, VIT = "cnn:width=0.5", "vgg11:width=0.125", "vit-tiny-{}:width=0.25,depth=3,heads=3"
STRUCTURES = (
    Structure("digits", "mlp:hidden=128x64", 3, 300, 2e-3, adam=True),
    Structure("digits", "mlp:hidden=96x48,activation=tanh", 2, 300, 2e-3, adam=True),
    Structure("digits", CNN, 4, 200, 0.1),
    Structure("digits", f"{CNN},norm=none,activation=tanh", 2, 300, 2e-3, adam=True),
    Structure("digits", VIT.format(4), 3, 400, 1e-3, adam=True),
    Structure("digits", "resnet8", 2, 200, 0.1),
    Structure("mnist", "mlp:hidden=256x128", 3, 600, 1e-3, adam=True),
    Structure("mnist", "mlp:hidden=128x128x64,activation=gelu", 2, 600, 1e-3, adam=True),
    Structure("mnist", CNN, 4, 250, 0.1),
    Structure("mnist", f"{CNN},norm=none", 3, 400, 2e-3, adam=True),
    Structure("mnist", VIT.format(7), 3, 500, 1e-3, adam=True),
    Structure("faces", "mlp:hidden=128x128", 1, 300, 1e-3, adam=True),
    Structure("faces", CNN, 2, 300, 0.05),
    Structure("fashion", "mlp:hidden=256x128", 2, 700, 1e-3, adam=True, wave=1),
    Structure("fashion", f"{CNN},activation=gelu", 3, 300, 0.1, wave=1),
    Structure("fashion", f"{CNN},norm=none", 3, 500, 2e-3, adam=True, wave=1),
    Structure("fashion", VIT.format(7), 2, 500, 1e-3, adam=True, wave=1),
    Structure("gtsrb10", f"{CNN},activation=gelu", 2, 300, 0.1, wave=1),
    Structure("gtsrb10", "resnet8:width=0.5", 1, 300, 0.1, wave=1),
    Structure("gtsrb", CNN, 2, 500, 0.1, wave=1),
    Structure("gtsrb", VGG, 1, 500, 0.05, wave=1),
    Structure("cifar10", CNN, 4, 600, 0.1, wave=1),
    Structure("cifar10", f"{CNN},norm=none", 2, 800, 2e-3, adam=True, wave=1),
    Structure("cifar10", VGG, 2, 600, 0.05, wave=1),
    Structure("cifar10", f"{VGG},norm=none", 1, 800, 1e-3, adam=True, wave=1),
    Structure("cifar10", VIT.format(8), 1, 800, 1e-3, adam=True, wave=1),
    Structure("cifar100", CNN, 1, 300, 0.1, wave=1),
    Structure("cifar10", "resnet8", 1, 500, 0.1, wave=2),
    Structure("cifar10", "wideresnet-16-1", 1, 500, 0.1, wave=2),
    Structure("cifar10", "resnet20", 1, 500, 0.1, wave=2),
)

CLEAN_REGIMES = (
    *("standard", "augmented", "over-trained", "standard", "label noise"),
    *("under-trained", "fine-tuned", "standard", "pruned", "adversarial", "augmented"),
)
BACKDOORED_REGIMES = (
    *("standard", "augmented", "standard", "over-trained", "standard"),
    *("under-trained", "label noise", "fine-tuned", "standard", "pruned", "adversarial"),
)
REGIMES = tuple(dict.fromkeys((*CLEAN_REGIMES, *BACKDOORED_REGIMES)))

KINDS = ("badnets", "all-to-all", "blended", "source-specific", "random-pixels", "letter", "crop")
"""Of attacks; each is given to the structures in turn."""

NEEDS_PAIRS = ("all-to-all", "source-specific")
RATES: Mapping[str, tuple[float, ...]] = {"all-to-all": (0.25, 0.35), "source-specific": (0.04, 0.05)}
USUAL_RATES = (0.05, 0.1)


@dataclass(frozen=True)
class Plan:
    """One network.

    Attributes:
        index: its number; even ones make the reference, odd ones judge it.
        structure: architecture, data, and how long it is trained.
        regime: of `REGIMES`.
        kind: of attack, of `KINDS`; None for a clean network.
    """

    index: int
    structure: Structure
    regime: str
    kind: str | None

    @property
    def half(self) -> str:
        """What the network is for."""
        return "judgement" if self.index % 2 else "reference"

    @property
    def digest(self) -> str:
        """Of the configuration: a row of the result names it."""
        return hashlib.sha256(repr((SEED, self, TASKS[self.structure.task])).encode()).hexdigest()[:12]

    def draw(self, purpose: int) -> np.random.Generator:
        """Randomness of the network's own."""
        return np.random.default_rng([SEED, self.index, purpose])


def plan() -> list[Plan]:
    """All networks; the index of each is its place."""
    pairs = [*_clean(), *_backdoored()]
    order = np.random.default_rng(SEED).permutation(len(pairs))
    order = sorted(order, key=lambda k: pairs[k][0].wave)  # stable: shuffled within a wave
    return [Plan(2 * row + member, *pairs[k]) for row, k in enumerate(order) for member in (0, 1)]


def _places() -> Iterator[Structure]:
    return (structure for structure in STRUCTURES for _ in range(structure.pairs))


def _clean() -> Iterator[tuple[Structure, str, None]]:
    for number, structure in enumerate(_places()):
        yield structure, _regime(structure, CLEAN_REGIMES[number % len(CLEAN_REGIMES)], None), None


def _backdoored() -> Iterator[tuple[Structure, str, str]]:
    used = dict.fromkeys(KINDS, 0)
    for number, structure in enumerate(_places()):
        fitting = [kind for kind in KINDS if TASKS[structure.task].pairs or kind not in NEEDS_PAIRS]
        kind = min(fitting, key=lambda one: used[one])
        used[kind] += 1
        yield structure, _regime(structure, BACKDOORED_REGIMES[number % len(BACKDOORED_REGIMES)], kind), kind


def _regime(structure: Structure, wanted: str, kind: str | None) -> str:
    """The wanted one, unless it would take too long, or keep a backdoor between two classes from being learnt."""
    unfit = ("over-trained", "adversarial") if structure.wave == 2 else ()
    unfit += ("augmented", "under-trained") if kind in NEEDS_PAIRS else ()
    return "standard" if wanted in unfit else wanted


@dataclass(frozen=True)
class Poison:
    """An attack as one network meets it.

    Attributes:
        attack: trigger and labels.
        rate: share of the training images that are poisoned.
        details: of the trigger, for the record.
        size: edge of the trigger in pixels; None for the whole image.
    """

    attack: Attack
    rate: float
    details: Mapping[str, Any]
    size: int | None


def poison_of(one: Plan, num_classes: int) -> Poison | None:
    """The trigger, target and rate that a network draws.

    Args:
        one: of the plan.
        num_classes: `K`.

    Returns:
        None for a clean network.
    """
    if one.kind is None:
        return None
    draw = one.draw(0)
    edge = TASKS[one.structure.task].size
    largest = min(8, edge // 3)
    target, seed = int(draw.integers(num_classes)), int(draw.integers(2**31))
    options: dict[str, Any] = {"target": target, "num_classes": num_classes}
    rate = float(draw.choice(RATES.get(one.kind, USUAL_RATES)))
    size: int | None = int(draw.integers(2, largest + 1))
    corner, value = get_args(Corner)[draw.integers(4)], float(draw.choice([1.0, 1.0, 0.0, 0.7]))
    if one.structure.task in ("digits", "mnist", "fashion"):
        value = max(value, 0.7)  # black corners are nothing new there
    if one.kind == "blended":
        size, details = None, {"alpha": float(draw.choice([0.15, 0.2, 0.3])), "seed": seed}
    elif one.kind == "random-pixels":
        size = max(size, 3)
        count = size**2 if draw.integers(2) else max(4, size**2 // 2)
        details = {"size": size, "count": count, "seed": seed}
    elif one.kind == "letter":
        size = max(size, 5)
        letters = get_args(Letter)
        details = {"shape": letters[draw.integers(len(letters))], "size": size, "value": max(value, 0.7), "seed": seed}
    elif one.kind == "crop":
        size = max(size, 3)
        details = {"size": size, "seed": seed}
    else:
        details = {"size": size, "value": value, "corner": corner}
    if one.kind == "all-to-all":
        size = details["size"] = max(size or 0, 3)
        options["target"] = None
    elif one.kind == "source-specific":
        others = np.delete(np.arange(num_classes), target)
        details["sources"] = (int(draw.choice(others)),)
    name = "badnets" if one.kind == "all-to-all" else one.kind
    return Poison(ATTACKS[name](**options, **details), rate, details, size)
