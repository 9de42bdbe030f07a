"""Leaves as libraries write them, with the axes derived by hand; what fits no rule is not understood, never guessed."""

import jax
import numpy as np
import pytest

from jaxguard.scores import structural
from jaxguard.scores.structural import NOT_A_LAYER, NOT_UNDERSTOOD, SCORED

RNG = np.random.default_rng(0)
OI, IO, OIHW, HWIO = ((0,), (1,), ()), ((1,), (0,), ()), ((0,), (1,), (2, 3)), ((3,), (2,), (0, 1))
IOHW, HWOI = ((1,), (0,), (2, 3)), ((2,), (3,), (0, 1))


def read(shapes, dtypes=()):
    dtypes = dict(dtypes)
    return structural.read({k: jax.ShapeDtypeStruct(v, np.dtype(dtypes.get(k, "float32"))) for k, v in shapes.items()})


CASES = {
    "torch Sequential with the norm behind a ReLU": (
        {"0.weight": (8, 3, 3, 3), "0.bias": (8,), "2.weight": (8,), "2.bias": (8,), "2.running_mean": (8,)}
        | {"2.running_var": (8,), "3.weight": (4, 8, 3, 3), "5.weight": (4,), "5.running_var": (4,)}
        | {"8.weight": (2, 4), "8.bias": (2,)},
        {"0": OIHW, "3": OIHW},
    ),
    "DCGAN generator": (
        {"main.0.weight": (100, 64, 4, 4), "main.1.weight": (64,), "main.1.running_var": (64,)}
        | {"main.3.weight": (64, 32, 4, 4), "main.4.weight": (32,), "main.4.running_var": (32,)}
        | {"main.6.weight": (32, 3, 4, 4)},
        {"main.0": IOHW, "main.3": IOHW, "main.6": IOHW},
    ),
    "U-Net with transposed convolutions among others": (
        {"down.conv.weight": (16, 3, 3, 3), "down.conv.bias": (16,), "mid.weight": (32, 16, 3, 3), "mid.bias": (32,)}
        | {"up.weight": (32, 16, 2, 2), "up.bias": (16,), "out.weight": (2, 16, 1, 1), "out.bias": (2,)},
        {"down.conv": OIHW, "mid": OIHW, "up": IOHW, "out": OIHW},
    ),
    "GPT-2 of transformers": (
        {"h.0.ln_1.weight": (32,), "h.0.attn.c_attn.weight": (32, 96), "h.0.attn.c_attn.bias": (96,)}
        | {"h.0.attn.c_proj.weight": (32, 32), "h.0.attn.c_proj.bias": (32,), "h.0.mlp.c_fc.weight": (32, 128)}
        | {"h.0.mlp.c_fc.bias": (128,), "h.0.mlp.c_proj.weight": (128, 32), "h.0.mlp.c_proj.bias": (32,)}
        | {"wte.weight": (100, 32), "wpe.weight": (64, 32), "score.weight": (2, 32)},
        {"h.0.attn.c_attn": IO, "h.0.attn.c_proj": IO, "h.0.mlp.c_fc": IO, "h.0.mlp.c_proj": IO},
    ),
    "nanoGPT, whose Linear layers have the same names": (
        {"h.0.attn.c_attn.weight": (96, 32), "h.0.attn.c_attn.bias": (96,), "h.0.attn.c_proj.weight": (32, 32)}
        | {"h.0.attn.c_proj.bias": (32,), "h.0.mlp.c_fc.weight": (128, 32), "h.0.mlp.c_fc.bias": (128,)}
        | {"lm_head.weight": (100, 32)},
        {"h.0.attn.c_attn": OI, "h.0.attn.c_proj": OI, "h.0.mlp.c_fc": OI},
    ),
    "torch MultiheadAttention": (
        {"attn.in_proj_weight": (48, 16), "attn.in_proj_bias": (48,), "attn.out_proj.weight": (16, 16)}
        | {"attn.out_proj.bias": (16,), "head.weight": (3, 16), "head.bias": (3,)},
        {"attn": OI, "attn.out_proj": OI},
    ),
    "torch LSTM": (
        {"rnn.weight_ih_l0": (64, 20), "rnn.weight_hh_l0": (64, 16), "rnn.bias_ih_l0": (64,), "rnn.bias_hh_l0": (64,)}
        | {"fc.weight": (5, 16), "fc.bias": (5,)},
        {"rnn.weight_ih_l0": OI, "rnn.weight_hh_l0": OI},
    ),
    "words of tables inside other words": (
        {"disposition_conv.weight": (8, 3, 3, 3), "tokenizer_conv.weight": (8, 8, 3, 3), "embedder.0.weight": (6, 8)}
        | {"embedder.0.bias": (6,), "relative.fc.weight": (2, 6)},
        {"disposition_conv": OIHW, "tokenizer_conv": OIHW, "embedder.0": OI},
    ),
    "Swin and ConvNeXt": (
        {"stages.0.gamma": (8,), "stages.0.attn.relative_position_bias_table": (169, 4), "patch_embed.proj.bias": (8,)}
        | {"patch_embed.proj.weight": (8, 3, 4, 4), "pos_embed": (1, 17, 8), "cls_token": (1, 1, 8)}
        | {"stages.0.layer_scale": (8, 1, 1), "stages.0.attn.qkv.weight": (24, 8), "head.weight": (2, 8)},
        {"patch_embed.proj": OIHW, "stages.0.attn.qkv": OI},
    ),
    "Haiku": (
        {"net/~/conv2_d/w": (3, 3, 3, 16), "net/~/norm/scale": (1, 1, 1, 16), "net/~/norm/offset": (1, 1, 1, 16)}
        | {"net/~/norm/~/var_ema/average": (1, 1, 1, 16), "net/~/norm/~/var_ema/hidden": (1, 1, 1, 16)}
        | {"net/~/norm/~/var_ema/counter": (), "net/~/linear/w": (16, 4), "net/~/linear/b": (4,)},
        {"net.conv2_d": HWIO},
    ),
    "NNX": (
        {"conv/kernel/value": (3, 3, 3, 16), "conv/bias/raw_value": (16,), "head/kernel/value": (16, 4)},
        {"conv": HWIO},
    ),
    "Flax attention": (
        {"params/a/query/kernel": (16, 2, 4), "params/a/query/bias": (2, 4), "params/a/out/kernel": (2, 4, 16)}
        | {"params/a/out/bias": (16,), "params/head/kernel": (16, 3)},
        {"a.query": ((1, 2), (0,), ()), "a.out": ((2,), (0, 1), ())},
    ),
    "Flax convolution along one axis, which is no stack": (
        {"params/conv/kernel": (3, 8, 16), "params/conv/bias": (16,), "params/head/kernel": (16, 3)},
        {"conv": ((2,), (1,), (0,))},
    ),
    "Flax depthwise and transposed convolutions": (
        {"params/dw/kernel": (3, 3, 1, 8), "params/dw/bias": (8,), "params/ConvTranspose_0/kernel": (3, 3, 8, 4)}
        | {"params/ConvTranspose_0/bias": (4,), "params/head/kernel": (4, 2)},
        {"dw": HWIO, "ConvTranspose_0": HWIO},
    ),
    "Keras separable, transposed and LSTM": (
        {"separable_conv2d/depthwise_kernel": (3, 3, 3, 2), "separable_conv2d/pointwise_kernel": (1, 1, 6, 8)}
        | {"separable_conv2d/bias": (8,), "conv2d_transpose/kernel": (3, 3, 4, 8), "conv2d_transpose/bias": (4,)}
        | {"lstm/lstm_cell/kernel:0": (4, 64), "lstm/lstm_cell/recurrent_kernel:0": (16, 64)}
        | {"lstm/lstm_cell/bias:0": (64,), "dense/kernel:0": (16, 2), "dense/bias:0": (2,)},
        {"separable_conv2d.depthwise_kernel": ((2, 3), (), (0, 1)), "separable_conv2d.pointwise_kernel": HWIO}
        | {"conv2d_transpose": HWOI, "lstm.lstm_cell.kernel": IO, "lstm.lstm_cell.recurrent_kernel": IO},
    ),
    "Keras 3": (
        {
            "layers/conv2d/vars/0": (3, 3, 3, 8),
            "layers/conv2d/vars/1": (8,),
            "layers/conv2d_transpose/vars/0": (3, 3, 4, 8),
        }
        | {"layers/conv2d_transpose/vars/1": (4,), "layers/depthwise_conv2d/vars/0": (3, 3, 4, 1)}
        | {"layers/dense/vars/0": (4, 2), "layers/dense/vars/1": (2,)},
        {"layers.conv2d": HWIO, "layers.conv2d_transpose": HWOI, "layers.depthwise_conv2d": ((2, 3), (), (0, 1))},
    ),
    "from scratch, with column biases": (
        {"W1": (64, 784), "b1": (64, 1), "W2": (32, 64), "b2": (32, 1), "W3": (10, 32), "b3": (10, 1)},
        {"W1": OI, "W2": OI},
    ),
    "from scratch, inputs first": (
        {"W1": (784, 64), "b1": (64,), "W2": (64, 32), "b2": (32,), "W3": (32, 10), "b3": (10,)},
        {"W1": IO, "W2": IO},
    ),
    "from scratch, without biases": ({"w1": (20, 64), "w2": (64, 32), "w3": (32, 10)}, {"w1": IO, "w2": IO}),
    "stax": (
        {"0/0": (3, 3, 1, 8), "0/1": (1, 1, 1, 8), "2/0": (8, 32), "2/1": (32,), "4/0": (32, 10), "4/1": (10,)},
        {"0": HWIO, "2": IO},
    ),
    "Equinox by number": (
        {"0": (16, 3, 3, 3), "1": (16, 1, 1), "2": (12, 16), "3": (12,), "4": (10, 12), "5": (10,)},
        {"0": OIHW, "2": OI},
    ),
    "fused experts": (
        {"layers.0.mlp.experts.gate_up_proj": (8, 16, 64), "layers.0.mlp.experts.gate_up_proj_bias": (8, 64)}
        | {
            "layers.0.mlp.experts.down_proj": (8, 32, 16),
            "layers.0.mlp.router.weight": (8, 16),
            "lm_head.weight": (99, 16),
        },
        {"layers.0.mlp.experts.gate_up_proj": ((0, 2), (1,), ()), "layers.0.mlp.experts.down_proj": ((0, 2), (1,), ())}
        | {"layers.0.mlp.router": OI},
    ),
    "low-rank adapter": (
        {"base_model.model.q.lora_A.default.weight": (4, 32), "base_model.model.q.lora_B.default.weight": (64, 4)}
        | {"base_model.model.v.lora_A.default.weight": (4, 64), "base_model.model.v.lora_B.default.weight": (32, 4)}
        | {"base_model.model.head.weight": (3, 32)},
        {"base_model.model.q": OI, "base_model.model.v": OI},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_axes_are_those_of_the_library(name):
    shapes, expected = CASES[name]
    reading = read(shapes)
    assert {one.stem: one.axes for one in reading.producers} == expected
    assert [account[0] for account in reading.accounts] == list(shapes)
    assert {state for _, state, _ in reading.accounts} <= {SCORED, NOT_A_LAYER}


def test_a_norm_behind_an_activation_and_one_of_haiku_scale_their_kernels():
    for name, norms in (("torch Sequential with the norm behind a ReLU", ["2", "5"]), ("Haiku", ["net.norm"])):
        assert [one.norm for one in read(CASES[name][0]).producers] == norms


@pytest.mark.parametrize("axis", [0, 1])
def test_every_layer_of_a_stack_is_a_layer(axis):
    """`nn.scan` puts the layers first, MaxText second; each layer's bounds are those of its own matrix."""
    kernel = RNG.normal(size=(5, 6, 8)).astype(np.float32)
    leaves = {
        "params/layers/up/kernel": np.moveaxis(kernel, 0, axis),
        "params/layers/down/kernel": np.moveaxis(kernel.swapaxes(1, 2), 0, axis),
        "params/layers/norm/scale": np.ones((5, 6) if axis == 0 else (6, 5), np.float32),
        "params/head/kernel": np.ones((6, 3), np.float32),
    }
    layers, scores = structural.channel_bounds(leaves)
    assert [layer.name for layer in layers] == [f"layers.{name}[{k}]" for name in ("up", "down") for k in range(5)]
    np.testing.assert_allclose(scores[:5], np.linalg.norm(kernel, axis=1), rtol=1e-5)
    np.testing.assert_allclose(scores[5:], np.linalg.norm(kernel, axis=2), rtol=1e-5)


def effective(leaves):
    return structural.channel_bounds(leaves | {"out.weight": np.ones((2, 6), np.float32)})[1][0]


def test_effective_weights_are_scored():
    """By hand: weight and spectral norm of torch and Flax, masks, low rank, DoRA, scales by channel and by block."""
    weight = RNG.normal(size=(6, 4)).astype(np.float32)
    gain = RNG.uniform(1, 2, (6, 1)).astype(np.float32)
    mask = (RNG.uniform(size=(6, 4)) > 0.5).astype(np.float32)
    left, singular, right = np.linalg.svd(weight, full_matrices=False)
    down, up = RNG.normal(size=(2, 4)).astype(np.float32), RNG.normal(size=(6, 2)).astype(np.float32)
    whole = RNG.integers(-9, 9, (6, 4)).astype(np.int8)
    rows = np.linalg.norm(weight, axis=1)
    cases = [
        ({"a.weight_g": gain, "a.weight_v": weight}, gain[:, 0]),
        ({"a.parametrizations.weight.original0": gain, "a.parametrizations.weight.original1": weight}, gain[:, 0]),
        ({"a.weight_orig": weight, "a.weight_u": left[:, 0], "a.weight_v": right[0]}, rows / singular[0]),
        (
            {
                "a.parametrizations.weight.original": weight,
                "a.parametrizations.weight.0._u": left[:, 0],
                "a.parametrizations.weight.0._v": right[0],
            },
            rows / singular[0],
        ),
        ({"a.weight_orig": weight, "a.weight_mask": mask}, np.linalg.norm(weight * mask, axis=1)),
        (
            {"a.base_layer.weight": weight, "a.lora_A.default.weight": down, "a.lora_B.default.weight": up},
            np.linalg.norm(weight + up @ down, axis=1),
        ),
        (
            {"a.lora_down.weight": down, "a.lora_up.weight": up, "a.alpha": np.float32(6), "a.weight": weight},
            np.linalg.norm(weight + 3 * up @ down, axis=1),
        ),
        ({"a.weight": whole, "a.weight_scale": gain}, np.linalg.norm(whole * gain, axis=1)),
        (
            {
                "a.base_layer.weight": weight,
                "a.lora_A.default.weight": down,
                "a.lora_B.default.weight": up,
                "a.lora_magnitude_vector.default.weight": gain[:, 0],
            },
            gain[:, 0],
        ),
        ({"WeightNorm_0/a/kernel/scale": gain[:, 0], "a/kernel": weight.T}, gain[:, 0]),
        ({"SpectralNorm_0/a/kernel/sigma": np.float32(3), "a/kernel": weight.T}, rows / 3),
        ({"a/kernel": whole.T, "a/kernel_scale": gain[:, 0]}, np.linalg.norm(whole * gain, axis=1)),
        ({"a.weight": whole, "a.SCB": gain[:, 0]}, np.linalg.norm(whole * gain / 127, axis=1)),
        (
            {"a.weight": whole, "a.weight_scale_inv": gain[:2].repeat(2, 1) * [1, 3]},
            np.linalg.norm(whole * np.repeat(gain[:2], 3, axis=0) * [1, 1, 3, 3], axis=1),
        ),
    ]
    for leaves, expected in cases:
        np.testing.assert_allclose(
            effective({name: np.asarray(leaf, getattr(leaf, "dtype", np.float32)) for name, leaf in leaves.items()}),
            expected,
            rtol=1e-5,
            err_msg=str(list(leaves)),
        )


@pytest.mark.parametrize(
    ("shapes", "name", "why"),
    [
        ({"w1": (16, 16), "w2": (16, 16)}, "w1", "layout not known"),
        ({"a.qweight": (8, 64), "a.scales": (1, 64), "out.weight": (2, 64)}, "a.qweight", "GPTQ"),
        ({"a.parametrizations.weight.original": (4, 4), "out.weight": (2, 4)}, None, "whose function"),
        ({"a.strange": (4, 5), "out.weight": (2, 4)}, "a.strange", "no dialect"),
    ],
)
def test_what_fits_no_rule_is_not_understood(shapes, name, why):
    dtypes = {one: "int32" for one in shapes if one.endswith("qweight")}
    accounts = {leaf: (state, reason) for leaf, state, reason in read(shapes, dtypes).accounts}
    state, reason = accounts[name or next(iter(shapes))]
    assert state == NOT_UNDERSTOOD and why in reason
