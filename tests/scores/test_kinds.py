"""Kinds of checkpoints that libraries write, each leaf with the state and the axes it must get; derived by hand."""

import jax
import numpy as np
import pytest

from jaxguard.scores import structural
from jaxguard.scores.structural import NOT_A_LAYER, NOT_UNDERSTOOD, SCORED

OI, IO, OIHW, HWIO = ((0,), (1,), ()), ((1,), (0,), ()), ((0,), (1,), (2, 3)), ((3,), (2,), (0, 1))
OUTPUT, BIAS, TABLE = "gives the logits", "bias", "table"

KINDS = {
    "Keras 3 attention": {
        "layers/multi_head_attention/query_dense/vars/0": ((6, 2, 4), ((1, 2), (0,), ())),
        "layers/multi_head_attention/query_dense/vars/1": ((2, 4), BIAS),
        "layers/multi_head_attention/output_dense/vars/0": ((2, 4, 6), ((2,), (0, 1), ())),
        "layers/multi_head_attention/output_dense/vars/1": ((6,), BIAS),
        "layers/grouped_query_attention/_key_dense/vars/0": ((6, 2, 3), ((1, 2), (0,), ())),
        "layers/grouped_query_attention/_key_dense/vars/1": ((2, 3), BIAS),
        "layers/grouped_query_attention/_output_dense/vars/0": ((4, 3, 6), ((2,), (0, 1), ())),
        "layers/grouped_query_attention/_output_dense/vars/1": ((6,), BIAS),
        "layers/dense/vars/0": ((6, 3), OUTPUT),
        "layers/dense/vars/1": ((3,), BIAS),
    },
    "Keras 3 recurrent": {
        "layers/bidirectional/forward_layer/cell/vars/0": ((12, 18), IO),
        "layers/bidirectional/forward_layer/cell/vars/1": ((6, 18), IO),
        "layers/bidirectional/forward_layer/cell/vars/2": ((2, 18), BIAS),
        "layers/lstm/cell/vars/0": ((6, 24), IO),
        "layers/lstm/cell/vars/1": ((6, 24), IO),
        "layers/lstm/cell/vars/2": ((24,), BIAS),
        "layers/dense/vars/0": ((6, 3), OUTPUT),
        "layers/embedding/vars/0": ((50, 12), TABLE),
    },
    "Keras 3, other layers": {
        "layers/conv2d/vars/0": ((3, 3, 3, 8), HWIO),
        "layers/p_re_lu/vars/0": ((11, 11, 8), "slope"),
        "layers/spectral_normalization/layer/vars/0": ((8, 16), IO),
        "layers/spectral_normalization/layer/vars/1": ((16,), BIAS),
        "layers/spectral_normalization/vars/0": ((8, 16), "stored twice"),
        "layers/spectral_normalization/vars/1": ((1, 16), "vector"),
        "layers/dense/vars/0": ((16, 2), OUTPUT),
    },
    "Keras HDF5 of MobileNet": {
        "conv1/kernel": ((3, 3, 3, 8), HWIO),
        "conv_dw_1/kernel": ((3, 3, 8, 1), ((2, 3), (), (0, 1))),
        "conv_dw_1_bn/gamma": ((8,), "norm"),
        "conv_dw_1_bn/moving_variance": ((8,), "norm"),
        "conv_pw_1/kernel": ((1, 1, 8, 16), HWIO),
        "conv_preds/kernel": ((1, 1, 16, 10), OUTPUT),
        "conv_preds/bias": ((10,), BIAS),
    },
    "three classes, as many as an image has channels": {
        "conv1.weight": ((6, 3, 5, 5), OIHW),
        "fc1.weight": ((120, 400), OI),
        "fc2.weight": ((3, 120), OUTPUT),
    },
    "auxiliary heads": {
        "conv.weight": ((8, 3, 3, 3), OIHW),
        "aux1.fc1.weight": ((16, 8), OI),
        "aux1.fc2.weight": ((5, 16), OUTPUT),
        "layer.weight": ((8, 8), OI),
        "fc.weight": ((5, 8), OUTPUT),
    },
    "heads of attention are no outputs": {
        "blocks.0.sa.heads.0.key.weight": ((4, 16), OI),
        "blocks.0.sa.heads.0.query.weight": ((4, 16), OI),
        "blocks.0.sa.proj.weight": ((16, 8), OI),
        "lm_head.weight": ((65, 16), OUTPUT),
    },
    "a classifier that is a convolution": {
        "features.0.weight": ((8, 3, 3, 3), OIHW),
        "classifier.1.weight": ((10, 8, 1, 1), OUTPUT),
        "classifier.1.bias": ((10,), BIAS),
    },
    "experts of transformers, outputs first": {
        "model.layers.0.mlp.gate.weight": ((4, 32), OI),
        "model.layers.0.mlp.experts.gate_up_proj": ((4, 96, 32), ((0, 1), (2,), ())),
        "model.layers.0.mlp.experts.down_proj": ((4, 32, 48), ((0, 1), (2,), ())),
        "lm_head.weight": ((99, 32), OUTPUT),
    },
    "experts whose sizes say nothing": {
        "model.layers.0.mlp.experts.gate_up_proj": ((4, 32, 32), None),
        "model.layers.0.mlp.experts.down_proj": ((4, 32, 32), None),
        "model.layers.0.mlp.up.weight": ((16, 32), OI),
        "lm_head.weight": ((99, 32), OUTPUT),
    },
    "MaxText experts": {
        "params/decoder/MoeBlock_0/gate/kernel": ((32, 4), IO),
        "params/decoder/MoeBlock_0/wi_0": ((4, 32, 64), ((0, 2), (1,), ())),
        "params/decoder/MoeBlock_0/wi_1": ((4, 32, 64), ((0, 2), (1,), ())),
        "params/decoder/MoeBlock_0/wo": ((4, 64, 32), ((0, 2), (1,), ())),
        "params/decoder/logits_dense/kernel": ((32, 99), OUTPUT),
    },
    "GPT-NeoX and OPT tables": {
        "gpt_neox.embed_in.weight": ((99, 32), TABLE),
        "model.decoder.embed_positions.weight": ((64, 32), TABLE),
        "transformer_blocks.0.emb.class_embedder.embedding_table.weight": ((11, 32), TABLE),
        "gpt_neox.layers.0.attention.dense.weight": ((32, 32), OI),
        "embed_out.weight": ((99, 32), OUTPUT),
    },
    "Mamba": {
        "backbone.layers.0.mixer.A_log": ((64, 8), "state space"),
        "backbone.layers.0.mixer.D": ((64,), "state space"),
        "backbone.layers.0.mixer.conv1d.weight": ((64, 1, 4), ((0,), (1,), (2,))),
        "backbone.layers.0.mixer.in_proj.weight": ((128, 32), OI),
        "backbone.layers.0.mixer.dt_proj.weight": ((64, 2), OI),
        "backbone.embeddings.weight": ((99, 32), TABLE),
        "lm_head.weight": ((99, 32), OUTPUT),
    },
    "MViT and SAM": {
        "blocks.0.attn.rel_pos_h": ((27, 64), TABLE),
        "blocks.0.attn.rel_pos_w": ((27, 64), TABLE),
        "blocks.0.attn.rel_pos_t": ((15, 64), TABLE),
        "blocks.0.attn.qkv.weight": ((192, 64), OI),
        "head.weight": ((5, 64), OUTPUT),
    },
    "Gemma in Flax": {
        "transformer/layer_0/attn/q_einsum/w": ((4, 32, 8), ((0, 2), (1,), ())),
        "transformer/layer_0/attn/kv_einsum/w": ((2, 1, 32, 8), ((0, 1, 3), (2,), ())),
        "transformer/layer_0/attn/attn_vec_einsum/w": ((4, 8, 32), ((2,), (0, 1), ())),
        "transformer/layer_0/mlp/gating_einsum": ((2, 32, 64), ((0, 2), (1,), ())),
        "transformer/embedder/input_embedding": ((99, 32), TABLE),
    },
    "DenseGeneral": {
        "params/DenseGeneral_0/kernel": ((6, 2, 3), ((1, 2), (0,), ())),
        "params/DenseGeneral_0/bias": ((2, 3), BIAS),
        "params/DenseGeneral_1/kernel": ((2, 3, 5), ((2,), (0, 1), ())),
        "params/DenseGeneral_1/bias": ((5,), BIAS),
        "lg/kernel": ((4, 6, 3, 5), ((2, 3), (0, 1), ())),
        "lg/bias": ((3, 5), BIAS),
        "params/head/kernel": ((5, 2), OUTPUT),
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_leaf_is_read_as_its_library_means_it(kind):
    leaves = KINDS[kind]
    reading = structural.read({name: jax.ShapeDtypeStruct(shape, np.float32) for name, (shape, _) in leaves.items()})
    axes = {name: one.axes for one in reading.producers for name in one.form.leaves}
    assert [name for name, *_ in reading.accounts] == list(leaves)
    for name, state, reason in reading.accounts:
        expected = leaves[name][1]
        if isinstance(expected, tuple):
            assert (state, axes.get(name)) == (SCORED, expected), (name, state, reason)
        elif expected == "norm":
            assert state == SCORED and "norm of" in reason, (name, reason)
        elif expected is None:
            assert state == NOT_UNDERSTOOD and "layout not known" in reason, (name, state, reason)
        else:
            assert state == NOT_A_LAYER and expected in reason, (name, state, reason)
