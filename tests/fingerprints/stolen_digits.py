"""A small network that recognises digits, stolen in several ways, and independent ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import data, models
from jaxguard.fingerprints.protocol import Owner
from jaxguard.theft import THEFTS, halves, independent
from jaxguard.types import Network

KEY = jax.random.key(0)
MODEL = models.build("mlp:hidden=32", num_classes=10, input_shape=(16, 16, 1))
QUICK = {"epochs": 12, "batch_size": 64}


@functools.cache
def images():
    """`(the owner's, others')` images and labels."""
    return halves(data.load("digits").train, KEY)


@functools.cache
def network():
    """The owner's."""
    return independent(MODEL, images()[0], KEY, **QUICK)[0]


@functools.cache
def owner():
    """The owner with all that it has."""
    return Owner(network(), images()[0])


@functools.cache
def copies():
    """By theft, made with others' images."""
    key, theirs = jax.random.key(7), images()[1]
    return {
        "fine-tune-all": THEFTS["fine-tune-all"](network(), theirs, key, **QUICK)[0],
        "quantisation": THEFTS["quantisation"](network(), None, key, bits=5)[0],
        "distillation": THEFTS["distillation"](network(), theirs, key, **QUICK)[0],
    }


@functools.cache
def independents():
    """Of the owner's architecture, trained on others' images."""
    return [independent(MODEL, images()[1], jax.random.key(100 + number), **QUICK)[0] for number in range(4)]


def outputs(networks: list[Network], probes) -> jax.Array:
    """`[S, N, K]`."""
    return jnp.stack([one.apply_fn(one.variables, jnp.asarray(probes.images)) for one in networks])


def scores(method, probes, networks) -> np.ndarray:
    """`[S]`, higher is more stolen."""
    ours = method.signature_fn(probes, outputs([network()], probes))[0]
    theirs = method.signature_fn(probes, outputs(networks, probes))
    return method.scores(method.distance_fn(probes, ours, theirs))
