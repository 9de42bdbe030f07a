"""Golden numbers of TSBD and OTBR, by torch: `PYTHONPATH=tests python tests/golden/repair_torch.py OUT.npz`.

One step of each method on the small PreActResNet-18 of `convnets_torch`, in the words of the papers and with the
reference codes' settings. Weights, the unlearned copy and the batch are drawn by numpy, so that the tests draw them
too. What is ranked is in float32, as its ties and rounding matter; gradients and transport are in float64. torch and
POT are imported where they are needed, so that the tests need neither.
"""

import copy
import math
import sys
from typing import Any

import jax
import numpy as np
import zoo
from golden import convnets_torch

from jaxguard import models

SPEC, SIZE, IMAGES = "preactresnet18:width=0.125", 16, 12

ZEROED = ((0.05, 0.7), (0.15, 0.7), (0.5, 0.3))
"""`(n, m)` of the reinitialisation."""

RATE, RADIUS, ALPHA = 0.01, 0.05, 0.7
"""Of fine-tuning."""

GAMMA, WEIGHT = 0.15, 0.5
"""Of OTBR; the paper's lambda is the weight."""

ENTRIES = 256
"""Entries kept of a large array."""


def model() -> models.Model:
    """The network."""
    return models.build(SPEC, num_classes=convnets_torch.CLASSES, input_shape=(SIZE, SIZE, 3))


def unlearned(variables: Any) -> Any:
    """An unlearned copy: every leaf moved, some channels much farther than others.

    Rounded to four decimals, many scores are equal, also those on either side of a share of 0.15.
    """
    rng = np.random.default_rng(11)

    def move(leaf):
        far = 3e-4 / rng.uniform(0.05, 1, leaf.shape[-1])
        moved = far * rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        return np.float32(np.asarray(leaf, np.float64) + moved)

    return jax.tree.map(move, variables)


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Images `[B, H, W, 3]` in [0, 1) and labels `[B]`."""
    rng = np.random.default_rng(3)
    images = rng.uniform(size=(IMAGES, SIZE, SIZE, 3)).astype(np.float32)
    return images, rng.integers(0, convnets_torch.CLASSES, IMAGES).astype(np.int32)


def sample(array) -> np.ndarray:
    """At most `ENTRIES` entries of an array, at places that depend on its size alone, and last its Euclidean norm."""
    flat = np.asarray(array, np.float64).ravel()
    places = np.random.default_rng(0).permutation(flat.size)[:ENTRIES]
    return np.append(flat[np.sort(places)], np.linalg.norm(flat))


def samples(arrays) -> np.ndarray:
    """The samples of some arrays, one after the other."""
    return np.concatenate([sample(array) for array in arrays]).astype(np.float32)


def gradient(network, images, labels):
    """Gradient of the cross-entropy in training mode, taken on a copy whose running statistics are thrown away."""
    import torch

    network = copy.deepcopy(network).train()
    loss = torch.nn.functional.cross_entropy(network(images), labels)
    return loss.item(), torch.autograd.grad(loss, list(network.parameters()))


def fine_tuned(network, images, labels, norm):
    """One activeness-aware step: the update of each parameter, and the network after it."""
    import torch

    _, first = gradient(network, images, labels)
    lengths = [g.norm() for g in first]
    if norm == "global":
        lengths = [torch.stack(lengths).norm()] * len(first)
    ascended = copy.deepcopy(network)
    with torch.no_grad():
        for p, g, length in zip(ascended.parameters(), first, lengths, strict=True):
            p.add_(RADIUS * g / length)
    _, second = gradient(ascended, images, labels)
    tuned = copy.deepcopy(network).train()
    optimizer = torch.optim.SGD(tuned.parameters(), lr=RATE, momentum=0.9)
    for p, g1, g2 in zip(tuned.parameters(), first, second, strict=True):
        p.grad = (1 - ALPHA) * g1 + ALPHA * g2
    optimizer.step()
    with torch.no_grad():
        tuned(images)
    pairs = zip(tuned.parameters(), network.parameters(), strict=True)
    return [(new - old).detach() for new, old in pairs], tuned


def weight_changes(before, after):
    """`{convolution: [Co, Ci, kh, kw]}` in float32; shortcuts are left out."""
    return {
        name: (after[name] - leaf).abs() for name, leaf in before.items() if leaf.ndim == 4 and "shortcut" not in name
    }


def first_of(scores, share):
    """Names and channels of the highest scores; the sort is stable, so equal ones stay in the order of the layers."""
    channels = [(name, c) for name, layer in scores.items() for c in range(len(layer))]
    channels.sort(key=lambda place: scores[place[0]][place[1]], reverse=True)
    return channels[: math.floor(share * len(channels))]


def zeroed(changes, scores, n, m):
    """`{convolution: bool [Co, Ci, kh, kw]}`, true where a weight is set to zero."""
    import torch

    top = first_of(scores, n)
    pool = sorted((change for name, c in top for change in changes[name][c].flatten().tolist()), reverse=True)
    smallest = pool[math.floor(m * len(pool)) - 1]
    masks = {name: torch.zeros_like(change, dtype=torch.bool) for name, change in changes.items()}
    for name, c in top:
        masks[name][c] = changes[name][c] >= smallest
    return masks


def fuse(leaves, scores, pruned, *, canonical):
    """`(costs, plans, fused kernels)`, each by convolution, from the first layer with a pruned channel on."""
    import ot
    import torch

    names = list(scores)
    names = names[min(names.index(name) for name, _ in pruned) :]
    costs, plans, fused, columns = {}, {}, {}, None
    for name in names:
        theirs = leaves[name].double()
        ours, rows = theirs.clone(), [c for layer, c in pruned if layer == name]
        ours[rows] = 0
        moved = ours if columns is None else torch.einsum("oiyx,ij->ojyx", ours, columns)
        cost = torch.cdist(ours.flatten(1), theirs.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
        masses = torch.tensor(scores[name], dtype=torch.float64)
        masses = masses / masses.sum()
        uniform = torch.full((len(ours),), 1 / len(ours), dtype=torch.float64)
        plan = torch.as_tensor(ot.emd(uniform, masses, cost))
        if canonical and rows:
            plan[rows] = plan[rows].mean(0)
        columns = plan / masses
        mixed = torch.einsum("ij,iczy->jczy", columns, moved)
        costs[name], plans[name], fused[name] = cost, plan, WEIGHT * mixed + (1 - WEIGHT) * theirs
    return costs, plans, fused


def main(path):
    """Write the golden file."""
    import ot
    import torch

    architecture = model()
    variables = zoo.randomise(architecture.shapes())
    before, after = (
        {name: torch.tensor(leaf) for name, leaf in models.unbind(architecture, tree, "torch").items()}
        for tree in (variables, unlearned(variables))
    )
    network = convnets_torch.cifar_networks()["preactresnet18"]
    misfits = network.load_state_dict(before, strict=False)
    assert not misfits.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in misfits.missing_keys)
    network = network.double()
    images, labels = (torch.tensor(part) for part in batch())
    images, labels = images.double().permute(0, 3, 1, 2), labels.long()
    golden = {"torch": np.array(torch.__version__), "pot": np.array(ot.__version__)}
    golden["weights"], golden["unlearned"] = (
        np.array(sum(leaf.double().abs().sum().item() for leaf in leaves.values())) for leaves in (before, after)
    )

    loss, climbed = gradient(network, images, labels)
    golden["parameters"] = np.array([name for name, _ in network.named_parameters()])
    golden["loss"], golden["ascent"] = np.array(loss), samples(-g for g in climbed)  # what is minimised is -CE

    for norm in ("per_tensor", "global"):
        updates, tuned = fine_tuned(network, images, labels, norm)
        golden[f"{norm}/update"] = samples(updates)
        norms = {name: layer for name, layer in tuned.named_modules() if isinstance(layer, torch.nn.BatchNorm2d)}
        golden["norms"] = np.array(list(norms))
        for statistic in ("running_mean", "running_var"):
            golden[f"{norm}/{statistic}"] = torch.cat([getattr(layer, statistic) for layer in norms.values()]).numpy()

    changes = weight_changes(before, after)
    exact = torch.cat([change.double().sum((1, 2, 3)) for change in changes.values()])
    margin = (exact * 1e4 - 0.5 - (exact * 1e4 - 0.5).round()).abs().min().item()
    assert margin > 1e-3, f"a score {margin:.1g} ten-thousandths from a rounding boundary: draw another copy"
    # By way of a text file.
    scores = {name: [float(f"{s:.4f}") for s in change.sum((1, 2, 3))] for name, change in changes.items()}
    assert min(map(min, scores.values())) > 0
    golden["layers"] = np.array([name.removesuffix(".weight") for name in scores])
    golden["nwc"] = np.concatenate(list(scores.values()))
    for n, m in ZEROED:
        masks = zeroed(changes, scores, n, m)
        golden[f"zeroed/{n}/{m}"] = np.packbits(torch.cat([mask.flatten() for mask in masks.values()]).numpy())

    pruned = first_of(scores, GAMMA)
    golden["pruned"] = np.array([(name, c) in set(pruned) for name, layer in scores.items() for c in range(len(layer))])
    for canonical in (False, True):
        costs, plans, fused = fuse(before, scores, pruned, canonical=canonical)
        golden["fused_layers"] = np.array([name.removesuffix(".weight") for name in fused])
        golden["costs"] = samples(costs.values())
        golden["objectives"] = np.array([(plans[name] * costs[name]).sum().item() for name in fused])
        golden["canonical" if canonical else "first"] = samples(list(fused.values())[: None if canonical else 1])
    np.savez_compressed(path, **golden)


if __name__ == "__main__":
    main(*sys.argv[1:])
