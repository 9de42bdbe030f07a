"""Functions and classes that pickles of models call to rebuild plain values, tensors, arrays and torch's own modules.

Whatever else a pickle calls is reported as code, whether it is known to do harm or not at all.
"""

import re

_BUILTINS = ("set", "frozenset", "list", "dict", "tuple", "bytes", "bytearray", "complex", "object", "int", "float")
_STORAGES = (
    *("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool", "ComplexFloat"),
    *("ComplexDouble", "QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4"),
)
_REBUILDS = (
    *("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state", "device_tensor_from_cpu_tensor"),
    *("qtensor", "sparse_tensor", "sparse_csr_tensor", "nested_tensor", "meta_tensor_no_storage", "wrapper_subclass"),
    *("device_tensor_from_numpy", "xla_tensor"),
)
_MODULES = """
activation CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax Mish
activation MultiheadAttention PReLU RReLU ReLU ReLU6 SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink
activation Softsign Tanh Tanhshrink Threshold
batchnorm BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm
channelshuffle ChannelShuffle
container ModuleDict ModuleList ParameterDict ParameterList Sequential
conv Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d
distance CosineSimilarity PairwiseDistance
dropout AlphaDropout Dropout Dropout1d Dropout2d Dropout3d FeatureAlphaDropout
flatten Flatten Unflatten
fold Fold Unfold
instancenorm InstanceNorm1d InstanceNorm2d InstanceNorm3d
linear Bilinear Identity Linear NonDynamicallyQuantizableLinear
loss BCELoss BCEWithLogitsLoss CTCLoss CrossEntropyLoss KLDivLoss L1Loss MSELoss NLLLoss SmoothL1Loss
module Module
normalization GroupNorm LayerNorm LocalResponseNorm RMSNorm
padding ConstantPad1d ConstantPad2d ConstantPad3d ReflectionPad1d ReflectionPad2d ReplicationPad2d ZeroPad1d ZeroPad2d
pixelshuffle PixelShuffle PixelUnshuffle
pooling AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d
pooling AvgPool1d AvgPool2d AvgPool3d MaxPool1d MaxPool2d MaxPool3d MaxUnpool2d
rnn GRU GRUCell LSTM LSTMCell RNN RNNCell
sparse Embedding EmbeddingBag
transformer Transformer TransformerDecoder TransformerDecoderLayer TransformerEncoder TransformerEncoderLayer
upsampling Upsample UpsamplingBilinear2d UpsamplingNearest2d
"""
_DTYPES = (
    *("float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool", "complex64"),
    *("complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
_TORCH = ("per_tensor_affine", "per_channel_affine", "contiguous_format", "uint16", "uint32", "uint64")

CONSTRUCTORS = frozenset({
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in (*_BUILTINS, "bool", "str", "slice")),
    *("__builtin__.unicode", "__builtin__.long", "builtins.range", "__builtin__.xrange"),
    *("collections.OrderedDict", "collections.Counter", "collections.defaultdict", "collections.deque"),
    *("argparse.Namespace", "types.SimpleNamespace", "_codecs.encode", "flax.core.frozen_dict.FrozenDict"),
    *("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__"),
    *(f"pathlib.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")),
    *(f"pathlib._local.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *("decimal.Decimal", "fractions.Fraction", "uuid.UUID"),
    *("numpy.dtype", "numpy.ndarray", "numpy.matrix", "numpy.recarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"),
    *(f"numpy.random._pickle.__{name}_ctor" for name in ("randomstate", "generator", "bit_generator")),
    *("numpy.random.__RandomState_ctor", "numpy.random.bit_generator.SeedSequence"),
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    *(f"numpy.random._{name.lower()}.{name}" for name in ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")),
    *(f"numpy.{name}" for name in (*_DTYPES, "bool_", "uint16", "uint32", "uint64")),
    *(f"ml_dtypes.{name}" for name in _DTYPES),
    *("numpy.ma.core._mareconstruct", "numpy.ma.core.MaskedArray", "numpy.ma.MaskedArray"),
    *(f"pandas.core.internals.managers.{name}BlockManager" for name in ("", "Single")),
    *("pandas._libs.internals._unpickle_block", "pandas._libs.tslibs.timestamps._unpickle_timestamp"),
    *("pandas.core.indexes.base._new_Index", "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked", "pandas.StringDtype"),
    "jax._src.array._reconstruct_array",
    *(f"torch._utils._rebuild_{name}" for name in _REBUILDS),
    *("torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2", "torch.storage._load_from_bytes"),
    *("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.Tensor", "torch._tensor.Tensor"),
    *("torch.Size", "torch.device", "torch.autograd.variable.Variable", "torch.serialization._get_layout"),
    *(f"torch.{device}{name}Storage" for device in ("", "cuda.") for name in _STORAGES),
    *(f"torch.{home}{name}" for home in ("", "storage.") for name in ("UntypedStorage", "_UntypedStorage")),
    *("torch.storage.TypedStorage", "torch.storage._TypedStorage"),
    *(f"torch.jit._pickle.{name}" for name in ("build_tensor_from_id", "restore_type_tag")),
    *(f"torch.jit._pickle.build_{kind}list" for kind in ("int", "tensor", "double", "bool")),
    *(f"torch.distributed.checkpoint.{name}" for name in ("metadata._MEM_FORMAT_ENCODING", "metadata.MetadataIndex")),
    *(f"torch.{name}" for name in (*_DTYPES, *_TORCH)),
    *(
        f"torch.nn.modules.{line.split()[0]}.{name}"
        for line in _MODULES.strip().splitlines()
        for name in line.split()[1:]
    ),
    "joblib.numpy_pickle.NumpyArrayWrapper",
})  # fmt: skip
"""Exact names, `module.name`: calls of these, and states set on what they make, run no code of a stranger's choice."""

RECORDS = re.compile(
    r"optax\.(\w+\.)*\w+(State|Info)|flax\.training\.train_state\.TrainState|"
    r"flax\.nnx\.(statelib\.(Flat)?State|variablelib\.[A-Z]\w*|tracers\.TraceState|rnglib\.[A-Z]\w*|graph\.[A-Z]\w*)|"
    r"jax\._src\.(prng|random\.prng)\.PRNG(KeyArray|Impl)|haiku\._src\.data_structures\.FlatMap|"
    r"torch\.optim\.(\w+\.)?[A-Z]\w*|torch\.nn\.(modules|utils)(\.\w+)*\.[A-Z]\w*|"
    r"torchvision\.(models|ops)(\.\w+)*\.[A-Z]\w*|"
    r"torch\.distributed\.checkpoint\.(metadata|filesystem)\._?[A-Z]\w*|"
    r"torch\.utils\.data\.dataset\.[A-Z]\w*|"
    r"scipy\.(sparse\.\w+\.[a-z]{3}_(matrix|array)|interpolate\._bsplines\.BSpline)|"
    r"pandas\.((core|arrays)(\.\w+)*\.)?[A-Z]\w*|"
    r"sklearn\.(?!externals|utils|datasets)(_?[a-z]\w*\.)+_?[A-Z]\w*"
)
"""Classes of known libraries that hold arrays and settings: `__new__` is harmless, `__init__` may call an argument."""

TYPES = re.compile(
    r"sklearn\.(tree\._tree\.Tree|_loss\._loss\.(__pyx_unpickle_)?Cy\w+|linear_model\._sgd_fast\.[A-Z]\w*|"
    r"(neighbors\._(kd|ball)_tree|metrics\._dist_metrics)\.newObj|metrics\._dist_metrics\.(?!PyFunc)\w+Distance\d*)"
)
"""Extension types of scikit-learn, which are called with sizes, and functions that make one of a type."""

SUBTYPES = frozenset(("numpy.memmap",))
"""Classes whose instances are rebuilt by others; calling them opens files."""

CALLED_ARGUMENTS = {
    "collections.defaultdict": (0,),
    "copyreg._reconstructor": (0, 1),
    "copy_reg._reconstructor": (0, 1),
    "copyreg.__newobj__": (0,),
    "copyreg.__newobj_ex__": (0,),
    "jax._src.array._reconstruct_array": (0,),
    "torch._tensor._rebuild_from_type": (0, 1),
    "torch._tensor._rebuild_from_type_v2": (0, 1),
    "numpy.core.multiarray._reconstruct": (0,),
    "numpy._core.multiarray._reconstruct": (0,),
    "torch._utils._rebuild_wrapper_subclass": (0,),
    "numpy.ma.core._mareconstruct": (0, 1),
    "pandas.core.indexes.base._new_Index": (0,),
    "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked": (0,),
    "sklearn.neighbors._kd_tree.newObj": (0,),
    "sklearn.neighbors._ball_tree.newObj": (0,),
    "sklearn.metrics._dist_metrics.newObj": (0,),
    "numpy.random._pickle.__bit_generator_ctor": (0,),
    "numpy.random._pickle.__generator_ctor": (0, 1),
    "numpy.random._pickle.__randomstate_ctor": (0, 1),
}
"""Constructor -> positions of arguments that it calls in its turn."""
