r"""How the libraries name their leaves: one row per dialect, nothing is guessed outside this table.

A name is first spelled out, see `names.spelled`: wrappers such as `params`, `value` or `~` go, and what several
libraries call differently gets one word. What is left is a module's path and the leaf's part, which these rows know.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Dialect(NamedTuple):
    """Kernels of one library.

    Attributes:
        name: for reports.
        kernel: expression that matches the part of a kernel.
        out_first: whether the output axis comes before the fan-in; None where the library has no rule.
        taps_first: whether spatial taps come before both; None where the library has no rule.
    """

    name: str
    kernel: str
    out_first: bool | None
    taps_first: bool | None


DIALECTS = (
    Dialect("torch", r"(in_proj_|[qkv]_proj_)?weight|weight_(ih|hh|hr)_l\d+(_reverse)?|weight_(ih|hh)", True, False),
    Dialect("Flax or Keras", r"(recurrent_|pointwise_|depthwise_)?kernel|gating_einsum|linear", False, True),
    Dialect("Haiku", r"w(_[ih])?", False, True),
    Dialect("fused experts", r"(gate_up_proj|down_proj|up_proj|gate_proj|wi(_\d)?|wo|w[123])", False, True),
    Dialect("no library's", r"[Ww]|weights?|\d+", None, None),
)
"""In the order in which they are tried; Haiku's and the fused names hold only where their marks are in the file."""

BIAS = re.compile(r"(.*_)?(bias|biases|beta|offset|b)(_.*)?|b\d+|.*zero_?points?")
SCALE = re.compile(
    r"scale|gamma|g|weight|layer_?scale(_\d+)?|ls\d*|lambda_?\d*|alpha|log_?scale|logit_scale|temperature"
)
MEAN, VARIANCE = re.compile(r"(running_|moving_)?mean"), re.compile(r"(running_|moving_)?(var|variance)")
STATISTIC = re.compile(
    r"(running_|moving_)(mean|var|variance|std)|.*_ema(_hidden|_counter)?|ema_.*|average|hidden|mean|var"
)
COUNTER = re.compile(r"num_batches_tracked|count(er)?|step|steps|n_averaged|iterations?|epoch|global_step|position_ids")
RANDOM = re.compile(r"rngs?|key|keys|_base_array|seed_generator_state|.*rng.*|key_data")

TRAINING = frozenset({"opt_state", "optimizer", "optimizer_state", "exp_avg", "exp_avg_sq", "momentum_buffer"})
"""Modules that hold no part of a network, where a reader did not leave them out."""

TABLE_PART = re.compile(
    r"(.*_)?(embed(ding)?s?|emb|tokens?|tok|table|codebook|latents?|queries|prototypes?|pe|freqs?(_cis)?"
    r"|prompts?|ctx|queue|memory(_bank)?|bank|centers?)"
    r"|(.*_)?(pos|position(al)?)(_.*)?|rel_pos_[hw]|inv_freq|(cos|sin)_cached|.*_(index|mask)|class_embedding"
)
"""Parts of tables that are looked up or added: embeddings, positions, tokens."""

TABLE_MODULE = re.compile(
    r"(.*_)?(embed(ding|der)?s?|emb|wte|wpe)(_\d+|_in|_(tokens?|positions?|table|weight))?|tok_embeddings|shared"
    r"|relative_attention_bias|rel(ative)?_?pos(ition)?(_bias)?"
)
"""Last word of a module whose `weight` or only variable of two axes is a table, where it has no bias."""

HEAD = re.compile(
    r"(?!pre_)(.*_)?(heads?|classifiers?|logits|pred|predictions?|preds|predictor|score|softmax)(_.*|\d+)?|aux_?logits|aux\d*",
    re.IGNORECASE,
)
"""A word in the path of a dense layer by which it belongs to a head."""

AUXILIARY = re.compile(r"aux.*", re.IGNORECASE)
"""A head beside the one that is used."""

OUTPUT = re.compile(r"(.*_)?(fc|linear|dense|output|out|last|final)(_?\d+|_layer|_proj)?", re.IGNORECASE)
"""Last word of a module that may give the logits, where nothing is called a head."""

ATTENTION_BLOCK = re.compile(r"(.*_)?(attn|attention|self_attn|mha|sa)(_.*|\d*)", re.IGNORECASE)
"""Modules of attention, whose heads and scores are no outputs."""

ATTENTION = re.compile(r"(.*_)?(query|key|value|q|k|v|qkv)(_dense|_proj)?")
ATTENTION_OUT = re.compile(r"out|attn_out|_?output_dense|attention_output|(.*_)?out(_proj)?")
"""Modules of Flax and Keras attention: `[D, heads, dim]`, and `[heads, dim, D]`."""

STACKED = re.compile(r"(.*_)?(scan\w*|layers|blocks|stack|layer_stack|hidden_layers|Scan\w*|vmap\w*|Vmap\w*)(_\d+)?")
"""Modules under which layers may be stacked, where no vector shows it."""

EXPERTS = re.compile(r"(.*_)?(experts?|moe\w*|switch_mlp|Moe\w*|MoE\w*)(_.*)?")
"""Modules whose kernels hold one matrix per expert."""

TRANSPOSED = re.compile(
    r"(.*_)?(conv\d?d?_?transposed?\d*d?|conv_?tr(ans)?|t_?conv\d*|deconv\w*|Conv\w*Transpose)(_\d+)?", re.IGNORECASE
)
"""Transposed convolutions by name; torch lays theirs as `[in, out, ...]`, Keras as `[..., out, in]`."""

DEPTHWISE = re.compile(
    r"(.*_)?(depthwise_conv|separable_conv|dw_?conv|conv_dw)(\dd)?(_\d+)?|\w*_dwconv\d*", re.IGNORECASE
)
"""Depthwise convolutions by name; Keras lays theirs as `[..., in, multiplier]`."""

DENSE = re.compile(r"(.*_)?(Dense|DenseGeneral|Linear|LinearGeneral|einsum_dense|dense_general)(_\d+)?")
"""Dense layers by name, which may sum over several axes."""

BILINEAR = re.compile(r"(.*_)?(bilinear|biaffine)\d*", re.IGNORECASE)

EINSUM = re.compile(r"(?P<front>(q|k|v|kv|qkv)_einsum|gating_einsum)|(?P<back>attn_vec_einsum)")
"""Gemma: `[..., in, out]` with heads in front, and `[heads, dim, out]`."""

NORM = re.compile(r"(.*_)?(ln|bn|gn|(layer|rms|batch|group|instance)?_?norm)(_?\d+|_[a-z]{1,4})?", re.IGNORECASE)
"""Modules whose `weight` is a scale, however many layers are stacked in it."""

STATE_SPACE = re.compile(r"A_logs?|Ds?|dt_bias|A_(real|imag)|log_A_\w+|S4D?_\w+|Lambda_(re|im)|log_dt")
"""Parameters of state spaces that are no matrix between channels."""

DOWN = re.compile(r"(.*_)?(down(_proj)?|wo|w2|output_linear)")
"""The one of fused experts that reads what the others make."""

NOT_TRANSPOSED = re.compile(
    r"(.*_)?(sr|patch\w*|proj|down\w*|reduction|stem|conv_?s\d)(_\d+)?|patch_embed\w*", re.IGNORECASE
)
"""Convolutions of even windows by name."""

CONVOLUTION = re.compile(r"(.*_)?(conv\w*|cnn\w*|tcn\w*)", re.IGNORECASE)

SLOPE = re.compile(r"(.*_)?p_?re_?lu(_\d+)?", re.IGNORECASE)
"""Activations with parameters of their own."""

_PACKED = {
    r"qweight": "packed GPTQ or AWQ integers",
    r"qzeros": "zero points of packed integers",
    r"g_idx": "order of groups of packed integers",
    r"SCB": "scales of int8 weights",
    r"(nested_)?(absmax|quant_map)|quant_state": "packed 4-bit weights of bitsandbytes",
    r"weight_packed|.*_blocks|W_q|Qidxs": "packed integers",
    r"codes|codebooks": "codes of additive quantisation",
    r"_packed_params": "packed parameters of torch.ao",
}


def packed(part: str) -> str:
    """What a part of a format is whose weights are packed bits, which are named and not scored; empty for others.

    >>> packed("qweight"), packed("weight")
    ('packed GPTQ or AWQ integers', '')
    """
    return next((words for pattern, words in _PACKED.items() if re.fullmatch(pattern, part)), "")


ADAPTER = re.compile(r"ia3_l|hada_\w+|lokr_\w+|vera_\w+|boft_\w+|oft_\w+|randlora_\w+|fourierft_\w+")
"""Parts of adapters that change a weight in ways not computed here."""

SCALES = ("weight_scale", "weight_scale_inv", "SCB", "kernel_scale", "scale", "scales", "weight_scales")
"""Parts that may hold the scales of an integer or float8 kernel beside them."""
