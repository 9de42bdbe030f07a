"""Backdoor attacks, for test beds and references: a factory of hyper-parameters gives an `Attack`.

    attack = ATTACKS["badnets"](target=0)
    poisoned, mask = poison(attack, train, 0.1, key)

Adding one is a file with a factory and a row of ATTACKS.
"""

from jaxguard import methods
from jaxguard.attacks.attack import Attack
from jaxguard.attacks.badnets import badnets
from jaxguard.attacks.blended import blended
from jaxguard.attacks.patch import patch
from jaxguard.attacks.poisoning import poison, triggered
from jaxguard.methods import Method

ATTACKS = methods.table(
    Method(badnets, "a small square in a corner", paper="Gu et al., 2017"),
    Method(blended, "faint noise over the whole image", paper="Chen et al., 2017"),
)
"""Name on the command line -> `(**options) -> Attack`."""

__all__ = ["ATTACKS", "Attack", "badnets", "blended", "patch", "poison", "triggered"]
