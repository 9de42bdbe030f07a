"""What synthetic reports are made of."""

import numpy as np

from jaxguard.types import (
    FingerprintMatrix,
    LayerScores,
    LayerSummary,
    Metrics,
    OwnershipReport,
    PruningPath,
    RecoveredTrigger,
    Repair,
    Report,
    TriggerExample,
    Verdict,
    Verification,
)

HOSTILE = "runs/<script>alert('x')</script>&\"'$\\frac{$\x1b[2J\u202egnp.npz"


def clp_layer(name: str, width: int, seed: int, *, u: float = 3.0, outlier: float = 0.0, dead: int = 0) -> LayerScores:
    """A layer of gamma-distributed scores with the CLP threshold; the first `dead` channels are undefined."""
    scores = np.random.default_rng(seed).gamma(12.0, 0.1, width)
    if outlier:
        scores[width // 3] += outlier
    undefined = np.arange(width) < dead
    scores[undefined] = np.nan
    known = scores[~undefined]
    threshold = float(known.mean() + u * known.std(ddof=1)) if known.size > 1 else np.inf
    return LayerScores(name, scores, threshold, scores > threshold, undefined)


def summary(layer: LayerScores) -> LayerSummary:
    """A scanned layer, by the definitions of its numbers."""
    known = layer.scores[~layer.undefined]
    if not known.size:
        nan = float("nan")
        return LayerSummary(
            layer.name, len(layer.scores), len(layer.scores), nan, nan, nan, -1, nan, 0, np.inf, layer.scores
        )
    std = known.std(ddof=1) if known.size > 1 else np.nan
    z = (known.max() - known.mean()) / std
    return LayerSummary(
        layer.name, len(layer.scores), int(layer.undefined.sum()), float(known.mean()), float(std), float(known.max()),
        int(np.nanargmax(layer.scores)), float(z), int((layer.scores > layer.threshold).sum()),
        layer.threshold, layer.scores,
    )  # fmt: skip


def resnet_layers(blocks: int, width: int, **options) -> tuple[LayerScores, ...]:
    names = [
        f"layer{1 + i // 4}_{i // 2 % 2}/conv{1 + i % 2} -> layer{1 + i // 4}_{i // 2 % 2}/bn{1 + i % 2}"
        for i in range(blocks)
    ]
    return tuple(clp_layer(name, width, seed, **options) for seed, name in enumerate(names))


def badnets(channels: int = 3, images: int = 6, size: int = 32) -> TriggerExample:
    """Smooth random pictures, and the same with a white 3x3 square in the corner."""
    waves = np.random.default_rng(0).uniform(0, 6.28, (images, channels, 4))
    y, x = np.mgrid[0:size, 0:size] / size
    pictures = np.stack(
        [
            np.stack([0.5 + 0.25 * np.sin(6 * x * a + b) + 0.25 * np.cos(5 * y * c + d) for a, b, c, d in wave], -1)
            for wave in waves
        ]
    ).astype(np.float32)
    triggered = pictures.copy()
    triggered[:, -4:-1, -4:-1] = 1.0
    return TriggerExample(pictures, triggered, attack="badnets:size=3", target=0)


def recovered(classes: int, *, target: int | None = 0, size: int = 32, shown: int = 10) -> RecoveredTrigger:
    """Norms around 50 pixels, and 5.8 for the target, whose patch is the one of `badnets`; indices by definition."""
    rng = np.random.default_rng(classes)
    norms = rng.normal(50, 8, classes).clip(25)
    masks = rng.uniform(0, 1, (classes, size, size, 1)) ** 4
    masks *= norms[:, None, None, None] / masks.sum((1, 2, 3), keepdims=True)
    patterns = rng.uniform(0, 1, (classes, size, size, 3))
    if target is not None:
        norms[target], masks[target] = 5.8, 0
        masks[target, -4:-1, -4:-1], patterns[target, -4:-1, -4:-1] = 5.8 / 9, 1
    below = np.median(norms) - norms
    order = np.argsort(norms)[:shown]
    return RecoveredTrigger(
        norms, rng.uniform(0.9, 1, classes), below / (1.4826 * np.median(np.abs(below))), target, order,
        masks[order].clip(0, 1), patterns[order], "10 clean images",
    )  # fmt: skip


def shapley_layers(widths: tuple[int, ...] = (16, 32, 64), cuts: int = 9) -> tuple[LayerScores, ...]:
    """Small values around 0, a few large ones, the largest cut; the first channel of all has none."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.001, sum(widths))
    outliers = rng.permutation(np.arange(1, values.size))[:12]
    values[outliers] += 0.3 * 0.7 ** np.arange(outliers.size)
    values[0] = np.nan
    mask = np.isin(np.arange(values.size), np.argsort(-np.nan_to_num(values))[:cuts])
    columns = values, mask, np.isnan(values), rng.uniform(0.001, 0.01, values.size)
    ends = np.cumsum(widths)[:-1]
    return tuple(
        LayerScores(f"layer{index}_0/conv1", scores, np.inf, cut, undefined, errors)
        for index, (scores, cut, undefined, errors) in enumerate(
            zip(*(np.split(column, ends) for column in columns), strict=True), 1
        )
    )


def pruning_path(layers: tuple[LayerScores, ...], *, tried: int = 14, chosen: int = 9) -> PruningPath:
    """Cuts the highest values first; the attack falls, then the accuracy."""
    rows = [
        (-value, f"{layer.name}[{channel}]", error)
        for layer in layers
        for channel, (value, error) in enumerate(zip(layer.scores, layer.errors, strict=True))
        if np.isfinite(value)
    ]
    values, names, errors = zip(*sorted(rows)[:tried], strict=True) if tried else ((), (), ())
    cuts = np.arange(tried + 1)
    return PruningPath(
        names, -np.array(values), np.array(errors), 0.98 * 0.75**cuts, 0.99 - 0.002 * cuts - 0.1 * (cuts > chosen),
        chosen, "the recovered trigger turns few images",
    )  # fmt: skip


def shapley_report(trigger: RecoveredTrigger | None, layers=(), path: PruningPath | None = None) -> Report:
    before = Metrics(acc=0.914, asr=0.972, ra=0.026, num_images=360, num_triggered=324)
    after = Metrics(acc=0.903, asr=0.021, ra=0.87, num_images=360, num_triggered=324) if path else before
    repair = Repair(
        "m.pt", "shapley", {"samples": 100}, layers, before=before, after=after, der=0.97, trigger=trigger, path=path
    )
    return Report("Repair of m.pt", "jaxguard repair m.pt --method shapley", repairs=(repair,), trigger=badnets())


THEFTS = ("fine-tuned", "pruned", "quantised", "distilled", "extracted by labels")


def ownership(
    copies: int = 3, others: int = 4, *, references: int = 39, alpha: float = 0.05, null: bool = False, seed: int = 0
) -> OwnershipReport:
    """Scores of independent models around -0.4, of copies around -0.05; p-values and verdicts by definition."""
    rng = np.random.default_rng(seed)
    known = np.sort(-rng.gamma(30.0, 0.4 / 30, references))
    scores = np.concatenate([-rng.uniform(0.02, 0.1, copies), -rng.gamma(30.0, 0.4 / 30, others)])
    found = []
    for index, score in enumerate(scores):
        p = (1 + int((known >= score).sum())) / (references + 1)
        enough = Verdict.NO_EVIDENCE if references >= 1 / alpha - 1 else Verdict.INCONCLUSIVE
        verdict = Verdict.SUSPECTED if p <= alpha else enough
        kind = THEFTS[index % 5].replace(" ", "-") if index < copies else "vendor"
        name = f"runs/suspects/{kind}-{index}.safetensors"
        own = (10.0 ** -rng.uniform(5, 40) if index < copies else 0.4) if null else None
        found.append(Verification(name, f"{index:04x}" * 16, float(-score), float(score), p, own, verdict))
    return OwnershipReport(
        "runs/owner.safetensors", "5e1f" * 16, "c0de" * 16, "zest", {"images": 128, "space": "clr"}, 128, alpha,
        known, tuple(f"independent-{k}" for k in range(references)), tuple(found),
        "fine-tuned, pruned and extracted copies, of any architecture.",
        "copies with other classes; independent models trained on the owner's data score closer than others.",
        ("The probes are training images of the owner.",), 4.25,
    )  # fmt: skip


def fingerprint_matrix(owners: int, suspects: int, *, seed: int = 0) -> FingerprintMatrix:
    """Suspects of families: each is near the owner that it comes from, and the family's members are near each other."""
    rng = np.random.default_rng(seed)
    family = rng.integers(0, owners + max(owners // 3, 1), suspects)
    likeness = rng.normal(0.25, 0.05, (owners, suspects))
    kin = family == np.arange(owners)[:, None]
    likeness[kin] = rng.uniform(0.6, 1.0, kin.sum())
    names = [
        f"fleet/{THEFTS[k % 5].replace(' ', '-')}-of-{own}-{k}" if own < owners else f"fleet/independent-{k}"
        for k, own in enumerate(family)
    ]
    return FingerprintMatrix(
        "sac", {"space": "logits"}, tuple(f"owners/resnet20-seed{k}" for k in range(owners)), tuple(names),
        1 - likeness, likeness - 1, 12.5,
    )  # fmt: skip


def ownership_report(*ownerships: OwnershipReport, matrices: tuple[FingerprintMatrix, ...] = ()) -> Report:
    return Report(
        "Is it a copy?", "jaxguard fingerprint verify owner.npz runs/suspects/*", ownerships=ownerships,
        matrices=matrices,
    )  # fmt: skip
