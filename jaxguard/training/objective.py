"""What is minimised, over what, and by which optimizer."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxguard.types import Batch, TrainFn, Variables

_FIXED, _FIXED_PARAMS = "leaves that are not trained", "parameters that are not trained"
"""Collections of what cannot be descended on: among all variables, and among `params`."""

GradientFn = Callable[[Any, Any, Batch], tuple[dict[str, jax.Array], Any, Any]]
"""`(params, state, batch) -> (scalars to record, state, gradient)`."""


def partition(variables: Variables) -> tuple[Any, dict[str, Any] | None]:
    """Splits variables into trained parameters and the other collections.

    Args:
        variables: `{"params": ..., "batch_stats": ..., ...}`, or any other pytree, which is trained as a whole; but
            for leaves that are no floating-point numbers, such as quantised kernels and keys of random streams.

    Returns:
        Parameters, and the other collections; None without a `params` collection.

    Example:
        >>> partition({"params": {"w": 1.0}, "batch_stats": {"mean": 0.0}})
        ({'w': 1.0}, {'batch_stats': {'mean': 0.0}})
    """
    if isinstance(variables, Mapping) and "params" in variables:
        params, state = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}
    else:
        params, state = variables, None
    if all(map(_is_trained, jax.tree.leaves(params))):
        return params, state
    # Two trees of one structure with None where the other has the leaf: optimizers and gradients pass over None.
    trained, fixed = (
        jax.tree.map(lambda leaf, wanted=wanted: leaf if _is_trained(leaf) is wanted else None, params)
        for wanted in (True, False)
    )
    return trained, {_FIXED: fixed} if state is None else {**state, _FIXED_PARAMS: fixed}


def combine(params: Any, state: Mapping[str, Any] | None) -> Variables:
    """Inverse of `partition`."""
    if state is None:
        return params
    others = {name: tree for name, tree in state.items() if name not in (_FIXED, _FIXED_PARAMS)}
    if len(others) < len(state):
        fixed = state.get(_FIXED, state.get(_FIXED_PARAMS))
        params = jax.tree.map(lambda a, b: b if a is None else a, params, fixed, is_leaf=lambda one: one is None)
    return params if _FIXED in state else {"params": params, **others}


def _is_trained(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype if hasattr(leaf, "dtype") else np.result_type(leaf), jnp.inexact)


def cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Mean cross-entropy, in float32 for logits of any dtype.

    Args:
        logits: `[B, K]`.
        labels: int `[B]`.
        label_smoothing: share of the label's mass spread evenly over the `K` classes, in [0, 1].

    Returns:
        float32 `[]`, in nats.

    Example:
        >>> round(float(cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))), 4)  # ln 4
        1.3863
    """
    logits = logits.astype(jnp.float32)
    # One-hot even without smoothing, so that a label out of range is a row of zeros and not a wrapped index.
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean()


@dataclass(frozen=True)
class LossGradient:
    """The gradient of one batch's loss in training mode.

    A value, not a closure: two equal ones share a compiled training step.

    Attributes:
        train_fn: training-mode model.
        loss_fn: `(logits [B, K], labels [B, ...]) -> []`, a function or a hashable value.
    """

    train_fn: TrainFn
    loss_fn: Callable[[jax.Array, jax.Array], jax.Array]

    def __call__(self, params: Any, state: Any, batch: Batch) -> tuple[dict[str, jax.Array], Any, Any]:
        """`{"loss": float32 []}`, the state after the batch in its former dtypes, and the gradient by `params`."""

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            logits, after = self.train_fn(combine(params, state), jnp.asarray(batch.images))
            return self.loss_fn(logits, jnp.asarray(batch.labels)), partition(after)[1]

        (loss, after), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return {"loss": loss}, jax.tree.map(lambda new, old: new.astype(old.dtype), after, state), gradient


@dataclass(frozen=True)
class CrossEntropyGradient:
    """The `LossGradient` of the cross-entropy.

    Attributes:
        train_fn: training-mode model.
        label_smoothing: see `cross_entropy`.
    """

    train_fn: TrainFn
    label_smoothing: float = 0.0

    def __call__(self, params: Any, state: Any, batch: Batch) -> tuple[dict[str, jax.Array], Any, Any]:
        """Differentiates; see `LossGradient`."""
        loss_fn = functools.partial(cross_entropy, label_smoothing=self.label_smoothing)
        return LossGradient(self.train_fn, loss_fn)(params, state, batch)


def update(
    optimizer: optax.GradientTransformation, gradient: Any, state: optax.OptState, params: Any = None
) -> tuple[Any, optax.OptState]:
    """What an optimizer adds to the parameters, and its state afterwards.

    Optax raises floats to an integer count of steps: JAX's promotion of dtypes is the standard one here, whatever it is
    around.

    Args:
        optimizer: from optax.
        gradient: of the parameters.
        state: the optimizer's.
        params: the parameters, where the optimizer needs them.
    """
    with jax.numpy_dtype_promotion("standard"):
        return optimizer.update(gradient, state, params)


@functools.lru_cache(maxsize=64)
def sgd(
    learning_rate: float | optax.Schedule, *, momentum: float = 0.9, weight_decay: float = 5e-4
) -> optax.GradientTransformation:
    """Stochastic gradient descent as torch defines it: decay is added to the gradient, before the momentum.

    Equal arguments give the identical optimizer, so that a compiled step is found again.

    Args:
        learning_rate: constant, or a schedule `step -> rate`.
        momentum: in [0, 1).
        weight_decay: coefficient of the L2 penalty's gradient, on every parameter.

    Returns:
        An optax optimizer.
    """
    descent = optax.sgd(learning_rate, momentum=momentum or None)
    # Decay before momentum, as torch: optax's own decoupled decay would not go through the momentum.
    return optax.chain(optax.add_decayed_weights(weight_decay), descent)


@functools.lru_cache(maxsize=64)
def cosine(learning_rate: float, num_updates: int, *, stride: int = 1, periodic: bool = False) -> optax.Schedule:
    """`learning_rate (1 + cos(pi n / num_updates)) / 2` with `n = floor(step / stride)`.

    Equal arguments give the identical schedule, as in `sgd`.

    Args:
        learning_rate: rate of the first step.
        num_updates: updates of the rate until it reaches 0; 0 counts as 1.
        stride: steps between two updates, >= 1; an epoch's, where the rate changes once per epoch.
        periodic: whether the rate then rises and falls again, as torch's scheduler does, instead of staying 0.

    Returns:
        A schedule `step -> rate`.

    Example:
        >>> [round(float(cosine(1.0, 4)(step)), 2) for step in (0, 2, 4, 6)]
        [1.0, 0.5, 0.0, 0.0]
        >>> [round(float(cosine(1.0, 4, periodic=True)(step)), 2) for step in (0, 2, 4, 6, 8)]
        [1.0, 0.5, 0.0, 0.5, 1.0]
    """

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        # Whole periods of `stride` steps: the rate changes epoch by epoch, as schedulers in torch do.
        phase = jnp.asarray(step) // stride / max(num_updates, 1)
        return learning_rate * (1 + jnp.cos(jnp.pi * (phase if periodic else jnp.minimum(phase, 1)))) / 2

    return schedule
