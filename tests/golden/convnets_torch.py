"""Golden logits of the convolutional families, computed by torch: `python tests/golden/convnets_torch.py OUT.npz`.

Made with torch 2.13.0, torchvision 0.28.0, timm 1.0.31 and numpy 2.4.6 on a CPU. Where a library has the family, its
own class is run, small where its constructor allows; the CIFAR families are written here after their papers. Every
entry of their state dicts is drawn by numpy from its name, so the file holds names, shapes and logits only. torch is
imported where it is needed, so that the tests can draw the same weights without it.
"""

import json
import re
import sys
import zlib

import numpy as np

CLASSES = 7
SIZES = {"vgg": 96, "densenet": 64, "mobilenet": 64}
"""Start of a case -> size of its images; 32 for all others."""

GAIN = 2  # sum of squares of a kernel's fan-in


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An entry of a state dict, drawn from its name, such that activations keep their scale."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) > 1:
        values = rng.normal(size=shape) * (GAIN / np.prod(shape[1:])) ** 0.5
    elif name.endswith(("weight", "running_var")):
        values = rng.uniform(0.7, 1.3, shape)
    else:
        values = rng.normal(size=shape) * 0.1
    return values.astype(np.float32)


def images(case: str) -> np.ndarray:
    """`[2, size, size, 3]`, normal, each image with colours and a contrast of its own."""
    size = next((size for start, size in SIZES.items() if case.startswith(start)), 32)
    rng = np.random.default_rng(0)
    colours, contrasts = rng.normal(size=(2, 1, 1, 3)), np.array([0.5, 2.0]).reshape(2, 1, 1, 1)
    return (colours + contrasts * rng.normal(size=(2, size, size, 3))).astype(np.float32)


def leaves(golden, case: str) -> dict[str, np.ndarray]:
    """The state dict of a case of the golden file."""
    return {name: weight(name, tuple(shape)) for name, shape in json.loads(str(golden[f"{case}/leaves"])).items()}


def cifar_networks():
    """Networks that no library publishes, after their papers and the names of the code they are known by."""
    import torch
    from torch import nn
    from torch.nn import functional

    def conv(inputs, outputs, size, stride=1):
        return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)

    class Basic(nn.Module):
        """He et al., CVPR 2016, figure 2; the shortcut is option A of section 4.2 or option B."""

        def __init__(self, inputs, outputs, stride, option):
            super().__init__()
            self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
            self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
            self.added = outputs - inputs
            self.shortcut = nn.Sequential()
            if self.added and option == "B":
                self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
            self.pad = bool(self.added) and option == "A"

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            if self.pad:
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added // 2))
            return torch.relu(y + self.shortcut(x))

    class PreActivation(nn.Module):
        """He et al., ECCV 2016; where the shape changes, the shortcut reads the activated input."""

        def __init__(self, inputs, outputs, stride, shortcut):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
            self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
            self.name = shortcut if inputs != outputs else ""
            if self.name:
                layer = conv(inputs, outputs, 1, stride)
                setattr(self, self.name, nn.Sequential(layer) if self.name == "shortcut" else layer)

        def forward(self, x):
            activated = torch.relu(self.bn1(x))
            y = self.conv2(torch.relu(self.bn2(self.conv1(activated))))
            return y + (getattr(self, self.name)(activated) if self.name else x)

    class Wide(nn.Module):
        """A stage of Zagoruyko and Komodakis, BMVC 2016."""

        def __init__(self, blocks):
            super().__init__()
            self.layer = blocks

        def forward(self, x):
            return self.layer(x)

    class Network(nn.Module):
        def __init__(self, block, option, channels, *, blocks, stage="layer", head="linear", last_norm=False):
            super().__init__()
            self.conv1 = conv(3, channels[0], 3)
            self.first = option in "AB"
            if self.first:
                self.bn1 = nn.BatchNorm2d(channels[0])
            self.stages, self.head, inputs = [], head, channels[0]
            for number, outputs in enumerate(channels[1:], start=1):
                layers = [block(inputs, outputs, 1 if number == 1 else 2, option)]
                layers += [block(outputs, outputs, 1, option) for _ in range(blocks - 1)]
                layers = nn.Sequential(*layers)
                self.stages.append(f"{stage}{number}")
                self.add_module(self.stages[-1], Wide(layers) if stage == "block" else layers)
                inputs = outputs
            self.last = last_norm
            if last_norm:
                self.bn1 = nn.BatchNorm2d(inputs)
            self.add_module(head, nn.Linear(inputs, CLASSES))

        def forward(self, x):
            x = self.conv1(x)
            if self.first:
                x = torch.relu(self.bn1(x))
            for name in self.stages:
                x = getattr(self, name)(x)
            if self.last:
                x = torch.relu(self.bn1(x))
            return getattr(self, self.head)(x.mean((2, 3)))

    return {
        "resnet20": Network(Basic, "A", (16, 16, 32, 64), blocks=3),
        "resnet18": Network(Basic, "B", (8, 8, 16, 32, 64), blocks=2),
        "preactresnet18": Network(PreActivation, "shortcut", (8, 8, 16, 32, 64), blocks=2),
        "wideresnet": Network(
            PreActivation, "convShortcut", (16, 32, 64, 128), blocks=1, stage="block", head="fc", last_norm=True
        ),
    }


def library_networks():
    """Networks of torchvision and timm."""
    import torch
    from torch import nn

    # The C++ operators of torchvision are not needed, but their names are.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm
    from torchvision.models import densenet, mobilenetv2, mobilenetv3, resnet, vgg

    small_stem = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], CLASSES)
    small_stem.conv1, small_stem.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()

    configuration = [word if word == "M" else word // 16 for word in vgg.cfgs["A"]]

    def narrow_vgg(norm, classifier):
        with torch.device("meta"):
            network = vgg.VGG(nn.Identity(), CLASSES, init_weights=False)
        network.features = vgg.make_layers(configuration, batch_norm=norm)
        network.classifier = classifier
        return network

    units = nn.Sequential(
        *(nn.Linear(32 * 49, 256), nn.ReLU(), nn.Dropout()),
        *(nn.Linear(256, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, CLASSES)),
    )
    one_layer = narrow_vgg(True, nn.Linear(32, CLASSES))
    one_layer.avgpool = nn.AdaptiveAvgPool2d(1)
    vgg_timm = timm.models.vgg.VGG(configuration, CLASSES, norm_layer=nn.BatchNorm2d)
    vgg_timm.pre_logits, vgg_timm.head.fc = timm.models.vgg.ConvMlp(32, 256), nn.Linear(256, CLASSES)
    dense = densenet.DenseNet(8, (2, 3, 2, 2), 16, num_classes=CLASSES)
    return {
        "resnet/basic": resnet.ResNet(resnet.BasicBlock, [2, 1, 1, 1], CLASSES),
        "resnet/bottleneck": resnet.ResNet(resnet.Bottleneck, [1, 2, 1, 1], CLASSES, width_per_group=16),
        "resnet/grouped": resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], CLASSES, groups=32, width_per_group=4),
        "resnet/cifar_stem": small_stem,
        "vgg/norm": narrow_vgg(True, units),
        "vgg/plain": narrow_vgg(False, units),
        "vgg/timm": vgg_timm,
        "vgg/one_layer": one_layer,
        "densenet/torch": dense,
        "densenet/original": dense,
        "mobilenet_v2/torch": mobilenetv2.MobileNetV2(CLASSES, width_mult=0.5),
        "mobilenet_v2/timm": timm.create_model("mobilenetv2_050", num_classes=CLASSES),
        "mobilenet_v3_small/torch": mobilenetv3.mobilenet_v3_small(num_classes=CLASSES),
        "mobilenet_v3_small/timm": timm.create_model("mobilenetv3_small_100", num_classes=CLASSES),
        "mobilenet_v3_large/torch": mobilenetv3.mobilenet_v3_large(num_classes=CLASSES),
    }


def renamed(case: str, name: str) -> str:
    """The name an entry has in a checkpoint of that case."""
    return (
        re.sub(r"(norm|conv)(\d)(?=\.\w+$)", r"\1.\2", name)
        if case == "densenet/original" and "layer" in name
        else name
    )


def main(path):
    """Write the golden file."""
    import torch

    golden = {"torch": np.array(torch.__version__)}
    for case, network in {**cifar_networks(), **library_networks()}.items():
        entries = {name: list(entry.shape) for name, entry in network.state_dict().items() if entry.is_floating_point()}
        drawn = {name: torch.tensor(weight(renamed(case, name), tuple(shape))) for name, shape in entries.items()}
        misfits = network.load_state_dict(drawn, strict=False)
        assert not misfits.unexpected_keys
        assert all(key.endswith("num_batches_tracked") for key in misfits.missing_keys)
        with torch.no_grad():
            golden[f"{case}/logits"] = network.eval()(torch.tensor(images(case)).permute(0, 3, 1, 2)).numpy()
        golden[f"{case}/leaves"] = np.array(json.dumps({renamed(case, name): shape for name, shape in entries.items()}))
        print(case, golden[f"{case}/logits"].std(0).round(2), np.abs(golden[f"{case}/logits"]).max().round(2))
    np.savez_compressed(path, **golden)


if __name__ == "__main__":
    main(*sys.argv[1:])
