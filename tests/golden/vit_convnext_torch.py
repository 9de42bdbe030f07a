"""Golden logits of ViT and ConvNeXt, computed by torch: `python tests/golden/vit_convnext_torch.py OUT.npz`.

Made with torch 2.13.0, torchvision 0.28.0, timm 1.0.31 and numpy 2.4.6 on a CPU. The networks are small instances of
torchvision's and timm's own classes. Every entry of their state dicts is drawn by numpy from its name, so the file
holds names, shapes and logits only. torch is imported where it is needed, so that the tests can draw the same weights
without it.
"""

import re
import sys
import zlib

import numpy as np

SPECS = {"vit": "vit-tiny-8:width=0.25,depth=2,heads=3", "convnext": "convnext-tiny:width=0.125,depths=1x1x2x1"}
"""Family -> the specification of the same network."""

AUTHORS = {
    r"^stem": "downsample_layers.0",
    r"stages\.(\d)\.downsample": r"downsample_layers.\1",
    r"blocks\.": "",
    r"conv_dw": "dwconv",
    r"mlp\.fc": "pwconv",
    r"head\.norm": "norm",
    r"head\.fc": "head",
}
"""timm's names of ConvNeXt -> those of the authors' release, which timm renames as it loads them."""

FAINT = (
    r"(class_token|cls_token|(encoder\.)?pos_embed|conv_proj|patch_embed|stem\.0|(features|downsample_layers)\.0\.0)"
)
"""What comes before the first normalisation; drawn small, so that the epsilon counts."""

CLASSES = 7
SIZE = {"vit": 32, "convnext": 64}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An entry of a state dict, drawn from its name; kernels keep the scale of their input."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    fan_in = np.prod(shape[1:]) if len(shape) in (2, 4) else 4
    scale = (2 / fan_in) ** 0.5 * (0.01 if re.match(FAINT, name) else 1)
    return (rng.normal(size=shape) * scale).astype(np.float32)


def images(size: int) -> np.ndarray:
    """`[2, size, size, 3]`, standard normal."""
    return np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)


def networks():
    """Family and layout -> torch module, regular expressions that rename its leaves, what reads such leaves."""
    import torch

    # The C++ operators of torchvision are not needed, but their names are.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from timm.models import convnext as timm_convnext
    from timm.models import vision_transformer as timm_vit
    from torchvision.models import convnext, vision_transformer

    settings = [
        convnext.CNBlockConfig(12, 24, 1),
        convnext.CNBlockConfig(24, 48, 1),
        convnext.CNBlockConfig(48, 96, 2),
        convnext.CNBlockConfig(96, None, 1),
    ]
    vit_torchvision = vision_transformer.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=192, num_classes=CLASSES
    )
    vit_timm = timm_vit.VisionTransformer(
        img_size=32, patch_size=8, depth=2, num_heads=3, embed_dim=48, num_classes=CLASSES
    )
    convnext_torchvision = convnext.ConvNeXt(settings, num_classes=CLASSES)
    convnext_timm = timm_convnext.ConvNeXt(depths=(1, 1, 2, 1), dims=(12, 24, 48, 96), num_classes=CLASSES)

    def same(leaves):
        return leaves

    def authors(leaves):
        return timm_convnext.checkpoint_filter_fn(leaves, convnext_timm)

    return {
        "vit/torch": (vit_torchvision, {}, same),
        "vit/timm": (vit_timm, {}, same),
        "vit/original": (vit_torchvision, {r"mlp\.0": "mlp.linear_1", r"mlp\.3": "mlp.linear_2"}, same),
        "convnext/torch": (convnext_torchvision, {}, same),
        "convnext/timm": (convnext_timm, {}, same),
        "convnext/original": (convnext_timm, AUTHORS, authors),
    }


def leaves(golden, case: str) -> dict[str, np.ndarray]:
    """The state dict of a case of the golden file."""
    shapes = [tuple(int(length) for length in shape.split("x")) for shape in golden[f"{case}/shapes"].tolist()]
    return {name: weight(name, shape) for name, shape in zip(golden[f"{case}/names"].tolist(), shapes, strict=True)}


def main(path):
    """Write the golden file."""
    import torch

    golden = {"torch": np.array(torch.__version__)}
    for case, (network, renamed, prepare) in networks().items():
        shapes = {}
        for key, entry in network.state_dict().items():
            name = key
            for pattern, replacement in renamed.items():
                name = re.sub(pattern, replacement, name)
            shapes[name] = tuple(entry.shape)
        network.load_state_dict(prepare({name: torch.tensor(weight(name, shape)) for name, shape in shapes.items()}))
        x = torch.tensor(images(SIZE[case.split("/")[0]])).permute(0, 3, 1, 2)
        with torch.no_grad():
            golden[f"{case}/logits"] = network.eval()(x).numpy()
        golden[f"{case}/names"] = np.array(list(shapes))
        golden[f"{case}/shapes"] = np.array(["x".join(map(str, shape)) for shape in shapes.values()])
    np.savez_compressed(path, **golden)


if __name__ == "__main__":
    main(*sys.argv[1:])
