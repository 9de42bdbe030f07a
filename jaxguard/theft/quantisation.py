"""Weight quantisation: kernels rounded to a few levels, symmetric about zero. No training, no data."""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval

from jaxguard import surgery
from jaxguard.graph import LeafView
from jaxguard.methods import checked
from jaxguard.theft.protocol import TheftReport
from jaxguard.types import Batch, Network


def rounded(view: LeafView, bits: int) -> surgery.Edit:
    """Edit that rounds a kernel to `2^bits - 1` levels.

        w  ->  s round(L w / s) / L,   L = 2^(bits - 1) - 1,   s = max |w|

    Args:
        view: the kernel's output channels.
        bits: per weight, sign included.

    Returns:
        `leaf -> leaf`, computed on the host, where no shape has to be compiled; a kernel of zeros stays.

    Example:
        >>> whole = LeafView("w", (slice(0, 1), slice(0, 4)), (1,), (4,))
        >>> rounded(whole, 2)(jnp.array([[-1.0, 0.4, 0.6, 2.0]])).tolist()  # L = 1, s = 2
        [[-0.0, 0.0, 0.0, 2.0]]
    """
    levels = 2 ** (bits - 1) - 1

    def apply(leaf: jax.Array) -> jax.Array:
        whole = np.array(leaf)
        run = whole[view.index].astype(np.promote_types(whole.dtype, np.float32))
        peak = np.abs(run).max(initial=0)
        steps = np.round(run / (peak or 1) * levels)
        whole[view.index] = (steps / levels * peak).astype(whole.dtype)
        return jnp.asarray(whole)

    return apply


@checked
def quantisation(
    owner: Network,
    data: Batch | None = None,
    key: jax.Array | None = None,
    *,
    bits: Annotated[int, Interval(ge=2, le=16)] = 8,
) -> tuple[Network, TheftReport]:
    """Rounds all kernels, as the graph finds them, with one scale each; biases, norms and embeddings stay.

    Weights keep their dtype, so that the copy runs where the owner's model does: quantisation as a change of values.

    Args:
        owner: the stolen model.
        data: ignored.
        key: ignored; nothing is drawn.
        bits: per weight, sign included.

    Returns:
        The copy.
    """
    del data, key
    variables: Any = owner.variables
    views = {repr(producer.kernel): producer.kernel for producer in owner.graph.producers}
    for view in views.values():
        variables = surgery.edit(variables, {view.path: rounded(view, bits)})
    note = f"{len(views)} kernels were rounded to {2**bits - 1} levels each."
    return owner.with_variables(variables), TheftReport(notes=(note,))
