"""Synthetic reports: every shape of report the forms must survive."""

import numpy as np
import pytest

from jaxguard.types import AuditReport, LayerScores, Metrics, RepairReport, ScanReport, TriggerExample

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


ENVIRONMENT = {"jaxguard": "0.1.0", "jax": "0.10.2", "backend": "cpu", "python": "3.11.9", "seed": "0"}


@pytest.fixture
def full() -> AuditReport:
    """Two scans, two repairs, a trigger."""
    suspect = resnet_layers(7, 32, u=4.0)
    before = Metrics(acc=0.989, asr=0.997, ra=0.003, num_images=360, num_triggered=324)
    scans = (
        ScanReport(
            "runs/2026-03/suspect.safetensors", "9f2c" * 16, "resnet8:width=0.5", "clp", "inconclusive", 3.06, suspect,
            notes=("No reference fleet was given, so the score has no p-value.",), seconds=0.0168, metrics=before,
        ),
        ScanReport(
            "runs/2026-03/vendor.safetensors", "07ab" * 16, "resnet8:width=0.5", "clp", "suspicious", 5.44,
            tuple(clp_layer(f"stage{i}/conv -> stage{i}/bn", 64, 40 + i, outlier=2.5 * (i == 2)) for i in range(3)),
            seconds=0.021, metrics=Metrics(acc=0.978, num_images=360),
        ),
    )  # fmt: skip
    repairs = (
        RepairReport(
            "runs/2026-03/suspect.safetensors", "ft_sam", {"rho": 2.0, "epochs": 20, "batch_size": 256},
            change={"params/conv1/kernel": 0.21, "params/head/kernel": 0.11}, before=before,
            after=Metrics(acc=0.981, asr=0.006, ra=0.971, num_images=360, num_triggered=324), der=0.9915,
            notes=("5 % of the training images were used.",), seconds=14.2,
        ),
        RepairReport(
            "runs/2026-03/suspect.safetensors", "clp", {"u": 3.0}, layers=suspect, before=before, after=before,
            der=0.5, notes=("Narrow layers: the threshold may be out of reach.",), seconds=0.02,
        ),
    )  # fmt: skip
    return AuditReport(
        "Audit of suspect.safetensors", "jaxguard repair runs/2026-03/suspect.safetensors --method ft_sam,clp",
        scans, repairs, badnets(), ENVIRONMENT,
    )  # fmt: skip


@pytest.fixture
def scan_only() -> AuditReport:
    """One scan, no metrics, nothing else."""
    layers = tuple(clp_layer(f"conv{i} -> bn{i}", 16 * 2**i, i) for i in range(3))
    scan = ScanReport("model.npz", "ab" * 32, "cnn_bn5", "clp", "inconclusive", 3.0, layers, seconds=0.003)
    return AuditReport("Scan of model.npz", "jaxguard scan model.npz", (scan,), environment=ENVIRONMENT)


@pytest.fixture
def deep() -> AuditReport:
    """60 layers, some channels undefined, some layers without any threshold, one strong outlier."""
    layers = list(resnet_layers(60, 96))
    layers[7] = clp_layer(layers[7].name, 96, 7, outlier=6.0)
    layers[20] = clp_layer(layers[20].name, 96, 20, dead=30)
    layers[33] = clp_layer(layers[33].name, 96, 33, dead=96)
    layers[34] = clp_layer(layers[34].name, 1, 34)
    layers[35] = clp_layer(layers[35].name, 8, 35)
    layers[59] = clp_layer(
        "a/very/long/path/of/modules/that/goes/on/and/on/conv_expand_1x1 -> bn_out", 96, 59, outlier=4.0
    )
    scan = ScanReport(
        "deep.safetensors", "cd" * 32, "resnet62", "clp", "inconclusive", 8.73, tuple(layers), seconds=0.4
    )
    return AuditReport("Scan of deep.safetensors", "jaxguard scan deep.safetensors", (scan,), environment=ENVIRONMENT)


@pytest.fixture
def bare() -> AuditReport:
    """No repairs, empty notes, an undefined score, nothing about the environment."""
    layer = clp_layer("conv -> bn", 4, 0, dead=4)
    scan = ScanReport("constant.npz", "00" * 32, "badnet", "clp", "inconclusive", float("nan"), (layer,))
    return AuditReport("Scan of constant.npz", "jaxguard scan constant.npz", (scan,))


@pytest.fixture
def hostile() -> AuditReport:
    """Markup, terminal codes, mathtext and right-to-left marks wherever a user or a checkpoint can put a string."""
    layer = clp_layer(f"$\\frac{{1}}$ [red] {HOSTILE}", 16, 0, outlier=4.0)
    scan = ScanReport(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, 1.0, (layer,), notes=(HOSTILE, "[bold]\udcff"))
    repair = RepairReport(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, (layer,), {HOSTILE: 1.0}, notes=(HOSTILE,))
    trigger = badnets(1, 2, 8)
    trigger = TriggerExample(trigger.clean, trigger.triggered, attack=HOSTILE, target=0)
    return AuditReport(HOSTILE, HOSTILE, (scan,), (repair,), trigger, {HOSTILE: HOSTILE})


@pytest.fixture(params=["full", "scan_only", "deep", "bare", "hostile"])
def any_report(request: pytest.FixtureRequest) -> AuditReport:
    return request.getfixturevalue(request.param)
