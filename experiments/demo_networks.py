"""Networks as the demo trains them, one per seed and attack, for the experiments that need many."""

from typing import NamedTuple

import jax

from jaxguard import data, demo, models, types
from jaxguard.attacks import ATTACKS, Attack, poison
from jaxguard.graph import ChannelGraph, channel_graph
from jaxguard.models import Model
from jaxguard.types import Dataset, Variables


class Network(NamedTuple):
    """A trained network and all that it was made of.

    Attributes:
        model: its architecture.
        graph: its channel graph.
        variables: its weights.
        digits: data, the defender's clean images among them.
        attack: what its training images were poisoned with, or would have been.
        key: for a defense, as in the demo.
    """

    model: Model
    graph: ChannelGraph
    variables: Variables
    digits: Dataset
    attack: Attack
    key: jax.Array

    @property
    def suspect(self) -> types.Network:
        """The network as a defense takes it."""
        return types.Network(self.variables, self.model.apply_fn, self.model.input_shape, self.model.train_fn)


def train(seed: int, attack_name: str, *, backdoored: bool = True) -> Network:
    """The demo's backdoored network of a seed, or the clean one beside it."""
    digits = data.load("digits", seed=seed, clean=demo.CLEAN)
    attack = ATTACKS[attack_name](target=0)
    shape = tuple(digits.test.images.shape[1:])
    model = models.build(demo.ARCHITECTURE, num_classes=digits.num_classes, input_shape=shape)
    key_poison, key_backdoored, key_clean, key_repair = jax.random.split(jax.random.key(seed), 4)
    poisoned, _ = poison(attack, digits.train, demo.POISON_RATE, key_poison)
    batch, key = (poisoned, key_backdoored) if backdoored else (digits.train, key_clean)
    variables = demo.train(model, batch, key, None)
    return Network(
        model, channel_graph(model.apply_fn, variables, digits.test.images), variables, digits, attack, key_repair
    )
