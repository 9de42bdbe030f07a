"""Weight quantisation: kernels rounded to a few levels, symmetric about zero. No training, no data."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import surgery
from jaxguard.errors import TheftError
from jaxguard.graph import LeafView
from jaxguard.theft.protocol import Copy
from jaxguard.types import Batch, Network

Per = Literal["tensor", "channel"]


def rounded(view: LeafView, bits: int, per: Per) -> surgery.Edit:
    """Edit that rounds a kernel to `2^bits - 1` levels.

        w  ->  s round(L w / s) / L,   L = 2^(bits - 1) - 1,   s = max |w| over the tensor or the output channel

    Args:
        view: the kernel's output channels.
        bits: per weight, sign included.
        per: what shares a scale `s`.

    Returns:
        `leaf -> leaf`, computed on the host, where no shape has to be compiled; a kernel of zeros stays.

    Example:
        >>> whole = LeafView("w", (slice(0, 1), slice(0, 4)), (1,), (4,))
        >>> rounded(whole, 2, "tensor")(jnp.array([[-1.0, 0.4, 0.6, 2.0]])).tolist()  # L = 1, s = 2
        [[-0.0, 0.0, 0.0, 2.0]]
    """
    kept, levels = view.axes if per == "channel" else (), 2 ** (bits - 1) - 1

    def apply(leaf: jax.Array) -> jax.Array:
        whole = np.array(leaf)
        run = whole[view.index].astype(np.promote_types(whole.dtype, np.float32))
        peak = np.abs(run).max(tuple(axis for axis in range(run.ndim) if axis not in kept), keepdims=True)
        steps = np.round(run / np.where(peak > 0, peak, 1) * levels)
        whole[view.index] = (steps / levels * peak).astype(whole.dtype)
        return jnp.asarray(whole)

    return apply


def quantisation(
    owner: Network, data: Batch | None = None, key: jax.Array | None = None, *, bits: int = 8, per: Per = "tensor"
) -> Copy:
    """Rounds all kernels, as the graph finds them; biases, norms and embeddings stay.

    Weights keep their dtype, so that the copy runs where the owner's model does: quantisation as a change of values.

    Args:
        owner: the stolen model.
        data: ignored.
        key: ignored; nothing is drawn.
        bits: per weight, sign included, 2 to 16.
        per: one scale for each kernel (`tensor`) or for each of its output channels (`channel`).

    Returns:
        The copy.

    Raises:
        TheftError: an option is out of range.
    """
    del data, key
    if not 2 <= bits <= 16 or per not in ("tensor", "channel"):
        raise TheftError(
            f"expected bits in 2 ... 16 and per to be tensor or channel, got {bits=}, {per=}; 8 bits per tensor "
            "is usual"
        )
    variables: Any = owner.variables
    views = {repr(producer.kernel): producer.kernel for producer in owner.graph.producers}
    for view in views.values():
        variables = surgery.edit(variables, {view.path: rounded(view, bits, per)})
    note = f"{len(views)} kernels were rounded to {2**bits - 1} levels each."
    return Copy(owner.with_variables(variables), notes=(note,))
