"""Golden numbers of CLP, computed by torch: `PYTHONPATH=tests python tests/golden/clp_torch.py OUT.npz`.

The networks are torch modules that register their layers in the order of the published code; they are never run. The
scores are those of the published method: walk the modules in registration order, remember the last convolution, and at
each BatchNorm take one singular value decomposition per channel. torch is imported where it is needed, so that the
tests can be collected without it.
"""

import sys

import numpy as np
import zoo

from jaxguard import models

U = (1.0, 2.0, 3.0)
SPECS = ("preactresnet18:width=0.125", "resnet18:width=0.125", "wideresnet-16-1:width=0.5", "vgg11:width=0.125")


def networks():
    """Specification -> torch module."""
    from torch import nn

    def conv(inputs, outputs, size):
        return nn.Conv2d(inputs, outputs, size, bias=False)

    class PreActBlock(nn.Module):
        def __init__(self, inputs, outputs, shortcut):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3)
            self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
            if inputs != outputs:
                layer = conv(inputs, outputs, 1)
                setattr(self, shortcut, nn.Sequential(layer) if shortcut == "shortcut" else layer)

    class BasicBlock(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.conv1, self.bn1 = conv(inputs, outputs, 3), nn.BatchNorm2d(outputs)
            self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
            if inputs != outputs:
                self.shortcut = nn.Sequential(conv(inputs, outputs, 1), nn.BatchNorm2d(outputs))

    class WideStage(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            blocks = (PreActBlock(source, outputs, "convShortcut") for source in (inputs, outputs))
            self.layer = nn.Sequential(*blocks)

    def stage(block, inputs, outputs, *options):
        return nn.Sequential(block(inputs, outputs, *options), block(outputs, outputs, *options))

    channels = (8, 16, 32, 64)
    pairs = list(zip((8, *channels), channels, strict=False))

    preact = nn.Module()
    preact.conv1 = conv(3, 8, 3)
    for number, (inputs, outputs) in enumerate(pairs, start=1):
        preact.add_module(f"layer{number}", stage(PreActBlock, inputs, outputs, "shortcut"))
    preact.linear = nn.Linear(64, 10)

    resnet = nn.Module()
    resnet.conv1, resnet.bn1 = conv(3, 8, 3), nn.BatchNorm2d(8)
    for number, (inputs, outputs) in enumerate(pairs, start=1):
        resnet.add_module(f"layer{number}", stage(BasicBlock, inputs, outputs))
    resnet.linear = nn.Linear(64, 10)

    wide = nn.Module()
    wide.conv1 = conv(3, 8, 3)
    for number, (inputs, outputs) in enumerate(((8, 8), (8, 16), (16, 32)), start=1):
        wide.add_module(f"block{number}", WideStage(inputs, outputs))
    wide.bn1, wide.fc = nn.BatchNorm2d(32), nn.Linear(32, 10)

    vgg, features, inputs = nn.Module(), [], 3
    for group in ((8,), (16,), (32, 32), (64, 64), (64, 64)):
        for outputs in group:
            features += [nn.Conv2d(inputs, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        features.append(nn.MaxPool2d(2))
    vgg.features, vgg.classifier = nn.Sequential(*features), nn.Linear(64, 10)
    return dict(zip(SPECS, (preact, resnet, wide, vgg), strict=True))


def bounds(network):
    """`{"convolution -> BatchNorm": [C]}` of a torch module, one decomposition per channel."""
    import torch
    from torch import nn

    scores, last = {}, ("", None)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            last = (name, module)
        elif isinstance(module, nn.BatchNorm2d):
            scale = (module.weight / torch.sqrt(module.running_var)).abs()
            kernel = last[1].weight
            values = [
                torch.linalg.svdvals(kernel[c].reshape(kernel.shape[1], -1)).max() * scale[c]
                for c in range(module.num_features)
            ]
            scores[f"{last[0]} -> {name}"] = torch.stack(values).detach()
    return scores


def main(path):
    """Write the golden file."""
    import torch

    golden = {"u": np.array(U), "torch": np.array(torch.__version__)}
    for spec, network in networks().items():
        model = models.build(spec, num_classes=10, input_shape=(32, 32, 3))
        leaves = models.unbind(model, zoo.randomise(model.shapes()), "torch")
        misfits = network.load_state_dict({name: torch.tensor(leaf) for name, leaf in leaves.items()}, strict=False)
        assert not misfits.unexpected_keys
        assert all(key.endswith("num_batches_tracked") for key in misfits.missing_keys)
        scores = bounds(network)
        masks = [torch.cat([s > s.mean() + u * s.std() for s in scores.values()]) for u in U]
        golden[f"{spec}/layers"] = np.array(list(scores))
        golden[f"{spec}/scores"] = torch.cat(list(scores.values())).numpy()
        golden[f"{spec}/masks"] = torch.stack(masks).numpy()
        golden[f"{spec}/weights"] = np.array(
            sum(float(np.abs(leaf, dtype=np.float64).sum()) for leaf in leaves.values())
        )
    np.savez_compressed(path, **golden)


if __name__ == "__main__":
    main(*sys.argv[1:])
