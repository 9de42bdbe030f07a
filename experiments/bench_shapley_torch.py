"""The reference of `bench_shapley.py` in torch: a CIFAR ResNet-20 with forward hooks that multiply masks in."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3x3 convolutions; a shortcut that subsamples and pads with zeros."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.added = stride, width - width_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]`."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet20(nn.Module):
    """He et al. 2016, section 4.2."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = (16, 16, 16, 16, 32, 32, 32, 64, 64, 64)
        self.blocks = nn.ModuleList(Block(a, b, 2 if a != b else 1) for a, b in itertools.pairwise(widths))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]`."""
        x = functional.relu(self.bn1(self.conv1(x)))
        for block in self.blocks:
            x = block(x)
        return self.linear(x.mean((2, 3)))


def masked_resnet20(num_images: int, channels: Sequence[int]) -> Callable[[jax.Array], Any]:
    """`gates [N] -> logits`: one forward pass with a mask on every BatchNorm's result."""
    network = ResNet20().eval()
    images = torch.rand(num_images, 3, 32, 32)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm.num_features for norm in norms] == list(channels)
    masks: list[torch.Tensor] = []
    for number, norm in enumerate(norms):
        norm.register_forward_hook(lambda _, __, result, number=number: result * masks[number])

    def run(gates: jax.Array) -> torch.Tensor:
        parts = torch.split(torch.from_numpy(np.array(gates)), list(channels))
        masks[:] = [part.view(1, -1, 1, 1) for part in parts]
        with torch.inference_mode():
            return network(images)

    return run
