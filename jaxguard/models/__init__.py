"""Image classifiers as pure functions: the literature's architectures, and checkpoints bound to them.

    model = build("preactresnet18", num_classes=10, input_shape=(32, 32, 3))
    variables = model.init(key)                    # or: variables, layout = bind(identify(leaves).model, leaves)
    logits = model.apply_fn(variables, images)     # images [B, H, W, C] in [0, 1]

Adding an architecture is one file with a `layers.Classifier` and one row of `ARCHITECTURES`.
"""

from jaxguard.models.architecture import ARCHITECTURES, Architecture, build
from jaxguard.models.binding import Binding, bind, binding_of, unbind
from jaxguard.models.identification import Identification, identify, infer, listed, original_names
from jaxguard.models.layouts import beside
from jaxguard.models.model import Model

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Binding",
    "Identification",
    "Model",
    "beside",
    "bind",
    "binding_of",
    "build",
    "identify",
    "infer",
    "listed",
    "original_names",
    "unbind",
]
