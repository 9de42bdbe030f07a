"""Backdoor attacks, for test beds and references: a factory of hyper-parameters gives an `Attack`.

    attack = ATTACKS["badnets"](target=0)
    poisoned, mask = poison(attack, train, 0.1, key)

Adding one is a file with a factory and a row of ATTACKS.
"""

from collections.abc import Callable, Mapping

from jaxguard.attacks.attack import Attack
from jaxguard.attacks.badnets import badnets
from jaxguard.attacks.blended import blended
from jaxguard.attacks.patch import patch
from jaxguard.attacks.poisoning import poison, triggered

ATTACKS: Mapping[str, Callable[..., Attack]] = {
    "badnets": badnets,
    "blended": blended,
}

__all__ = ["ATTACKS", "Attack", "badnets", "blended", "patch", "poison", "triggered"]
