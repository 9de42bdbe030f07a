"""Backdoor attacks, for test beds and references: a factory of hyper-parameters gives an `Attack`.

    attack = ATTACKS["badnets"](target=0)
    poisoned, mask = poison(attack, train, 0.1, key)

Every attack is all-to-all with `target=None`, and `restricted(attack, sources)` makes it work on some classes only.
Adding one is a file with a factory and a row of ATTACKS.
"""

from jaxguard import methods
from jaxguard.attacks.attack import Attack
from jaxguard.attacks.badnets import badnets
from jaxguard.attacks.blended import blended
from jaxguard.attacks.crop import crop
from jaxguard.attacks.known import known
from jaxguard.attacks.letter import letter
from jaxguard.attacks.patch import patch
from jaxguard.attacks.poisoning import poison, triggered
from jaxguard.attacks.random_pixels import random_pixels
from jaxguard.attacks.source_specific import restricted, source_specific
from jaxguard.methods import Method

ATTACKS = methods.table(
    Method(badnets, "a small square in a corner", paper="Gu et al., 2017"),
    Method(blended, "faint noise over the whole image", paper="Chen et al., 2017"),
    Method(source_specific, "a small square that works on some classes only", paper="Tang et al., 2021"),
    Method(random_pixels, "pixels of random colours"),
    Method(letter, "a letter"),
    Method(crop, "a crop of a photograph"),
)
"""Name on the command line -> `(**options) -> Attack`."""

__all__ = [
    "ATTACKS",
    "Attack",
    "badnets",
    "blended",
    "crop",
    "known",
    "letter",
    "patch",
    "poison",
    "random_pixels",
    "restricted",
    "source_specific",
    "triggered",
]
