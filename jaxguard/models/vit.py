"""Vision transformers, `vit-<size>-<patch>`.

Dosovitskiy et al., An Image is Worth 16x16 Words (ICLR 2021): pre-norm encoder blocks over the patches of an image and
a class token with learned positions. The weights are those of torchvision's and of timm's networks; `tiny` and `small`
are the sizes of Touvron et al., Training data-efficient image transformers (ICML 2021).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
from flax import linen as nn
from jax import numpy as jnp

from jaxguard.errors import ArchitectureError
from jaxguard.models import dialects, layers
from jaxguard.models.dialects import Dialect, Shape

HEAD_CHANNELS = 64  # of every published size


def _torchvision(fc1: str, fc2: str) -> Dialect:
    block = r"encoder.layers.encoder_layer_\1"
    return Dialect(
        {
            "cls_token": "class_token",
            "pos_embed": "encoder.pos_embedding",
            r"patch_embed/(\w+)": r"conv_proj.\1",
            r"blocks_(\d+)/norm(\d)/(\w+)": rf"{block}.ln_\2.\3",
            r"blocks_(\d+)/attn/qkv/(\w+)": rf"{block}.self_attention.in_proj_\2",
            r"blocks_(\d+)/attn/proj/(\w+)": rf"{block}.self_attention.out_proj.\2",
            r"blocks_(\d+)/mlp_fc1/(\w+)": rf"{block}.mlp.{fc1}.\2",
            r"blocks_(\d+)/mlp_fc2/(\w+)": rf"{block}.mlp.{fc2}.\2",
            r"norm/(\w+)": r"encoder.ln.\1",
            r"head/(\w+)": r"heads.head.\1",
        }
    )


DIALECTS: Mapping[dialects.Name, Dialect] = {
    "torch": _torchvision("0", "3"),
    "timm": Dialect({r"patch_embed/(\w+)": r"patch_embed.proj.\1"}),
    "original": _torchvision("linear_1", "linear_2"),  # of torchvision's published weights
}


class Attention(nn.Module, kw_only=True):
    """Multi-head self-attention; one projection `qkv` gives queries, keys and values, in this order.

    Attributes:
        heads: number of heads, divides the channels.
        dtype: compute dtype.
    """

    heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, N, D] -> [B, N, D]`."""
        batch, tokens, channels = x.shape
        joined = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(x)
        per_head = (batch, tokens, self.heads, channels // self.heads)
        # Cut before the reshape: values then have channels of their own, which a reshape to (3, heads, dim) would tie.
        query, key, value = (part.reshape(per_head) for part in jnp.split(joined, 3, axis=-1))
        # Scaling the queries instead of the scores multiplies fewer numbers.
        scores = jnp.einsum("bqhd,bkhd->bhqk", query * per_head[-1] ** -0.5, key)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)
        return nn.Dense(channels, dtype=self.dtype, name="proj")(mixed.reshape(x.shape))


class EncoderBlock(nn.Module, kw_only=True):
    """`y = x + attn(norm1(x))`, then `y + fc2(gelu(fc1(norm2(y))))` with four times the channels between.

    Attributes:
        heads: of the attention.
        dtype: compute dtype.
    """

    heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, N, D] -> [B, N, D]`."""
        channels = x.shape[-1]
        y = layers.layer_norm(dtype=self.dtype, name="norm1")(x)
        x = x + Attention(heads=self.heads, dtype=self.dtype, name="attn")(y)
        y = layers.layer_norm(dtype=self.dtype, name="norm2")(x)
        y = nn.gelu(nn.Dense(4 * channels, dtype=self.dtype, name="mlp_fc1")(y), approximate=False)
        return x + nn.Dense(channels, dtype=self.dtype, name="mlp_fc2")(y)


class VisionTransformer(layers.Classifier, kw_only=True):
    """Patches `patch_embed`, `cls_token`, `pos_embed`; blocks `blocks_0`, ...; `norm`; `head` on the class token.

    Attributes:
        patch: pixels per side of a patch; those beyond the last whole patch are not read.
        channels: of the tokens, before the width multiplier.
        depth: number of blocks.
        heads: of every block; 0 for one per 64 channels, as all published sizes have.
    """

    default_size: ClassVar[tuple[int, int]] = (224, 224)
    stem: ClassVar[str] = "patch_embed"
    head: ClassVar[str] = "head"

    patch: int
    channels: int
    depth: int
    heads: int = 0

    @property
    def dialects(self) -> Mapping[dialects.Name, Dialect]:
        """Torchvision's names, which were changed after the weights were published, and timm's."""
        return DIALECTS

    @property
    def landmarks(self) -> Sequence[str]:
        """The first block distinguishes the dialects, the last one depths."""
        return (self.stem, self.head, "blocks_0/mlp_fc1", f"blocks_{self.depth - 1}/mlp_fc1")

    @property
    def guesses(self) -> Sequence[str]:
        """The leaves of an attention layer are the same for any number of heads."""
        if self.heads or self.width == 1:
            return ()
        heads = heads_of(layers.scaled(self.channels, self.width))
        return (f"The number of heads, {heads}, is a guess: no published transformer has these widths.",)

    def input_size(self, shape_of: Callable[[str], Shape | None]) -> tuple[int, int] | None:
        """A square number of positions, beside the class token's, is a square image."""
        shape = shape_of("pos_embed")
        if shape is None or len(shape) != 3 or shape[1] < 2:
            return None
        side = math.isqrt(shape[1] - 1)
        return (side * self.patch, side * self.patch) if side * side == shape[1] - 1 else None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, K]`; needs at least one patch."""
        del train
        channels = layers.scaled(self.channels, self.width)
        heads = self.heads or heads_of(channels)
        if channels % heads:
            raise ArchitectureError(
                f"expected a number of heads that divides the {channels} channels of a ViT's tokens, got "
                f"heads={heads}; pass heads={heads_of(channels)} or another width"
            )
        x = layers.patch_conv(images, channels, self.patch, dtype=self.dtype, name="patch_embed")
        x = x.reshape(x.shape[0], -1, channels)
        token = self.param("cls_token", nn.initializers.zeros, (1, 1, channels))
        token = jnp.broadcast_to(token, (x.shape[0], 1, channels)).astype(x.dtype)
        x = jnp.concatenate([token, x], axis=1)
        x = x + self.param("pos_embed", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
        for i in range(self.depth):
            x = EncoderBlock(heads=heads, dtype=self.dtype, name=f"blocks_{i}")(x)
        x = layers.layer_norm(dtype=self.dtype, name="norm")(x)
        return layers.logits(x[:, 0], self.num_classes, name="head")


def heads_of(channels: int) -> int:
    """The largest divisor of the channels that leaves at least 64 channels per head, or 1.

    >>> heads_of(768), heads_of(48), heads_of(200)
    (12, 1, 2)
    """
    return next(heads for heads in range(max(1, channels // HEAD_CHANNELS), 0, -1) if channels % heads == 0)
