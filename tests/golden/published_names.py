"""Names and shapes of all that the published classifiers of torchvision and timm hold in their state dicts.

`python tests/golden/published_names.py tests/golden/published_names.json.gz` wrote the file with torch 2.13.0,
torchvision 0.28.0 and timm 1.0.31. The networks live on torch's meta device, so no weight is ever allocated. torch is
imported where it is needed, so that the tests can be collected without it.
"""

import gzip
import json
import sys

TORCHVISION = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d"),
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    *("vit_b_16", "vit_b_32", "vit_l_16"),
    *(f"convnext_{size}" for size in ("tiny", "small", "base", "large")),
)
TIMM = (
    *("resnet50", "densenet121", "vgg16_bn"),
    *("mobilenetv2_100", "mobilenetv2_050", "mobilenetv2_140", "mobilenetv3_small_100", "mobilenetv3_large_100"),
    *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")),
    "deit_small_patch16_224",
    *(f"convnext_{size}" for size in ("tiny", "small", "base", "large")),
)


def main(path: str) -> None:
    """Write `{"library/model": {name: shape}}`, in the order of the state dicts."""
    import torch

    # The C++ operators of torchvision are not needed, but their names are.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm
    from torchvision import models

    networks = {f"torchvision/{name}": models.get_model for name in TORCHVISION}
    networks |= {f"timm/{name}": timm.create_model for name in TIMM}
    published = {}
    for key, create in networks.items():
        with torch.device("meta"):
            network = create(key.partition("/")[2])
        published[key] = {name: list(leaf.shape) for name, leaf in network.state_dict().items()}
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        file.write(json.dumps(published, separators=(",", ":")).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
