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
    "convolutions of even windows and as many channels on both sides": {
        "sr.weight": ((8, 8, 2, 2), OIHW),
        "conv_layers.0.conv.weight": ((8, 8, 3), ((0,), (1,), (2,))),
        "conv_layers.1.conv.weight": ((8, 8, 2), ((0,), (1,), (2,))),
        "deconv1.weight": ((8, 8, 4, 4), ((1,), (0,), (2, 3))),
        "conv_transpose.weight": ((8, 8, 3, 3), ((1,), (0,), (2, 3))),
        "conv5_mask.weight": ((8, 8, 2, 2), None),
        "head.weight": ((2, 8), OUTPUT),
    },
    "a list of layers without biases is no stack": {
        "focal_layers.0.0.weight": ((96, 1, 3, 3), OIHW),
        "focal_layers.1.0.weight": ((96, 1, 5, 5), OIHW),
        "head.weight": ((2, 96), OUTPUT),
    },
    "three axes in NNX": {
        "c1/kernel/value": ((3, 6, 9), ((2,), (1,), (0,))),
        "c1/bias/value": ((9,), BIAS),
        "norm/scale/value": ((6,), "norm or of a branch"),
        "attn/q/kernel/value": ((9, 2, 4), ((1, 2), (0,), ())),
        "attn/o/kernel/value": ((2, 4, 9), ((2,), (0, 1), ())),
        "mix/kernel/value": ((5, 7, 9), None),
        "head/kernel/value": ((9, 3), OUTPUT),
    },
    "weight and spectral norm of Linen": {
        "params/Dense_0/kernel": ((6, 7), IO),
        "params/WeightNorm_0/Dense_0/kernel/scale": ((7,), IO),
        "params/Dense_1/kernel": ((7, 9), IO),
        "batch_stats/SpectralNorm_0/Dense_1/kernel/sigma": ((), IO),
        "batch_stats/SpectralNorm_0/Dense_1/kernel/u": ((1, 9), "vector"),
        "params/head/kernel": ((9, 2), OUTPUT),
    },
    "adapters of PEFT": {
        "base_model.model.q.base_layer.weight": ((32, 16), OI),
        "base_model.model.q.lora_A.default.weight": ((4, 16), OI),
        "base_model.model.q.lora_B.default.weight": ((32, 4), OI),
        "base_model.model.q.lora_magnitude_vector.default.weight": ((32,), OI),
        "base_model.model.conv.base_layer.weight": ((8, 3, 3, 3), OIHW),
        "base_model.model.conv.lora_A.default.weight": ((2, 3, 3, 3), OIHW),
        "base_model.model.conv.lora_B.default.weight": ((8, 2, 1, 1), OIHW),
        "base_model.model.k.base_layer.weight": ((32, 16), "adapter"),
        "base_model.model.k.ia3_l.default": ((32, 1), "adapter"),
        "base_model.model.v.base_layer.weight": ((32, 16), "adapter"),
        "base_model.model.v.hada_w1_a.default": ((32, 4), "adapter"),
        "base_model.model.o.base_layer.weight": ((16, 32), "do not fit"),
        "base_model.model.o.lora_A.default.weight": ((4, 32), "do not fit"),
        "base_model.model.o.lora_B.default.weight": ((16, 5), "do not fit"),
        "base_model.model.classifier.original_module.weight": ((2, 32), "replaced"),
        "base_model.model.classifier.modules_to_save.default.weight": ((2, 32), OUTPUT),
    },
    "packed integers": {
        "a.up_proj.qweight": ((8, 128), "GPTQ", "int32"),
        "a.up_proj.qzeros": ((1, 16), "packed", "int32"),
        "a.up_proj.scales": ((1, 128), "packed", "float16"),
        "b.up_proj.weight": ((4096, 1), "bitsandbytes", "uint8"),
        "b.up_proj.weight.absmax": ((128,), "bitsandbytes", "uint8"),
        "b.up_proj.weight.quant_map": ((16,), "bitsandbytes"),
        "c.W_q": ((64, 64), "packed", "uint8"),
        "c.scale": ((128, 1), "packed"),
        "d.experts.gate_up_proj_blocks": ((4, 128, 2, 16), "packed", "uint8"),
        "lm_head.weight": ((99, 64), OUTPUT),
    },
    "Equinox by path, whose biases have as many axes as kernels": {
        "conv1.weight": ((8, 3, 3, 3), OIHW),
        "conv1.bias": ((8, 1, 1), BIAS),
        "attn.query_proj.weight": ((32, 8), OI),
        "lin.weight": ((3, 32), OUTPUT),
    },
    "as many heads as numbers in each": {
        "encoder/self_attn/query/kernel": ((16, 4, 4), ((1, 2), (0,), ())),
        "encoder/self_attn/query/bias": ((4, 4), BIAS),
        "encoder/self_attn/out/kernel": ((4, 4, 16), ((2,), (0, 1), ())),
        "head/kernel": ((16, 10), OUTPUT),
    },
    "stacked layers under torch's names": {
        "blocks.linear.weight": ((6, 16, 8), ((1,), (2,), ())),
        "blocks.linear.bias": ((6, 16), BIAS),
        "blocks.norm.weight": ((6, 8), "norm or of a branch"),
        "head.weight": ((3, 16), OUTPUT),
    },
    "a U-Net whose transposed convolutions say nothing of the others": {
        "up.weight": ((64, 32, 2, 2), ((1,), (0,), (2, 3))),
        "up.bias": ((32,), BIAS),
        "down.weight": ((32, 3, 3, 3), OIHW),
        "mid.weight": ((64, 32, 3, 3), OIHW),
    },
    "an adapter whose last factors are those of attention": {
        "transformer.blocks.0.attn.to_q.lora_A.weight": ((4, 32), OI),
        "transformer.blocks.0.attn.to_q.lora_B.weight": ((32, 4), OI),
        "transformer.blocks.0.attn.to_v.lora_A.weight": ((4, 32), OI),
        "transformer.blocks.0.attn.to_v.lora_B.weight": ((16, 4), OI),
    },
    "Haiku recurrent": {
        "net/~/gru/w_i": ((8, 48), IO),
        "net/~/gru/w_h": ((16, 48), IO),
        "net/~/gru/b": ((48,), BIAS),
        "net/~/lstm/linear/w": ((24, 64), IO),
        "net/~/lstm/linear/b": ((64,), BIAS),
        "net/~/conv2_d_transpose/w": ((3, 3, 8, 16), ((2,), (3,), (0, 1))),
        "net/~/logits/w": ((16, 5), OUTPUT),
    },
    "arrays of a training beside the network": {
        "queue": ((8, 100), TABLE),
        "prompt": ((10, 8), TABLE),
        "centers": ((10, 8), TABLE),
        "something": ((10, 8), None),
        "conv.weight": ((8, 3, 3, 3), OIHW),
        "fc.weight": ((4, 8), OUTPUT),
    },
}
UNKNOWN = ("adapter", "do not fit", "packed", "GPTQ", "bitsandbytes")


@pytest.mark.parametrize("kind", KINDS)
def test_every_leaf_is_read_as_its_library_means_it(kind):
    leaves = KINDS[kind]
    specs = {name: jax.ShapeDtypeStruct(row[0], np.dtype((*row, "float32")[2])) for name, row in leaves.items()}
    reading = structural.read(specs)
    axes = {name: one.axes for one in reading.producers for name in one.form.leaves}
    assert [name for name, *_ in reading.accounts] == list(leaves)
    for name, state, reason in reading.accounts:
        expected = leaves[name][1]
        if isinstance(expected, tuple):
            assert (state, axes.get(name)) == (SCORED, expected), (name, state, reason)
        elif expected == "norm":
            assert state == SCORED and "norm of" in reason, (name, reason)
        elif expected is None or expected in UNKNOWN:
            assert state == NOT_UNDERSTOOD and (expected or "layout not known") in reason, (name, state, reason)
        else:
            assert state == NOT_A_LAYER and expected in reason, (name, state, reason)
