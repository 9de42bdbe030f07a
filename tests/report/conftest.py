"""Synthetic reports: every shape of report the forms must survive."""

import dataclasses

import numpy as np
import pytest
from samples import (
    HOSTILE,
    badnets,
    clp_layer,
    fingerprint_matrix,
    ownership,
    ownership_report,
    pruning_path,
    recovered,
    resnet_layers,
    shapley_layers,
    shapley_report,
    summary,
)

from jaxguard.types import (
    Finding,
    LayerScores,
    Metrics,
    Provenance,
    PruningPath,
    Repair,
    Report,
    TriggerExample,
    Verdict,
)  # fmt: skip

ENVIRONMENT = {"jaxguard": "0.1.0", "jax": "0.10.2", "backend": "cpu", "python": "3.11.9", "seed": "0"}


def scanned(name: str, sha256: str, architecture: str, z: float, layers: tuple[LayerScores, ...], **fields) -> Finding:
    """A finding without a profile."""
    where = Provenance(name, sha256, 291_304, "safetensors", architecture)
    told = {"reason": "no reference profile", "cohort": architecture, "looks": ("weights",)} | fields
    return Finding(where, Verdict.INCONCLUSIVE, z=z, layers=tuple(map(summary, layers)), **told)


@pytest.fixture
def full() -> Report:
    """Two scans, two repairs, a trigger."""
    suspect = resnet_layers(7, 32, u=4.0)
    before = Metrics(acc=0.989, asr=0.997, ra=0.003, num_images=360, num_triggered=324)
    scans = (
        scanned(
            "runs/2026-03/suspect.safetensors", "9f2c" * 16, "resnet8:width=0.5", 3.06, suspect,
            notes=("The last layer was not scored.",), metrics=before,
        ),
        scanned(
            "runs/2026-03/vendor.safetensors", "07ab" * 16, "resnet8:width=0.5", 5.44,
            tuple(clp_layer(f"stage{i}/conv -> stage{i}/bn", 64, 40 + i, outlier=2.5 * (i == 2)) for i in range(3)),
            metrics=Metrics(acc=0.978, num_images=360),
        ),
    )  # fmt: skip
    repairs = (
        Repair(
            "runs/2026-03/suspect.safetensors", "ft_sam", {"rho": 2.0, "epochs": 20, "batch_size": 256},
            change={"params/conv1/kernel": 0.21, "params/head/kernel": 0.11}, before=before,
            after=Metrics(acc=0.981, asr=0.006, ra=0.971, num_images=360, num_triggered=324), der=0.9915,
            notes=("5 % of the training images were used.",), seconds=14.2,
        ),
        Repair(
            "runs/2026-03/suspect.safetensors", "clp", {"u": 3.0}, layers=suspect, before=before, after=before,
            der=0.5, notes=("Narrow layers: the threshold may be out of reach.",), seconds=0.02,
        ),
    )  # fmt: skip
    return Report(
        "Audit of suspect.safetensors", "jaxguard repair runs/2026-03/suspect.safetensors --method ft_sam,clp",
        scans, repairs, trigger=badnets(), environment=ENVIRONMENT,
    )  # fmt: skip


@pytest.fixture
def scan_only() -> Report:
    """One scan, no metrics, nothing else."""
    layers = tuple(clp_layer(f"conv{i} -> bn{i}", 16 * 2**i, i) for i in range(3))
    scan = scanned("model.npz", "ab" * 32, "cnn_bn5", 3.0, layers)
    return Report("Scan of model.npz", "jaxguard scan model.npz", (scan,), environment=ENVIRONMENT)


@pytest.fixture
def deep() -> Report:
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
    scan = scanned("deep.safetensors", "cd" * 32, "resnet62", 8.73, tuple(layers))
    return Report("Scan of deep.safetensors", "jaxguard scan deep.safetensors", (scan,), environment=ENVIRONMENT)


@pytest.fixture
def bare() -> Report:
    """No repairs, empty notes, an undefined score, nothing about the environment."""
    layer = clp_layer("conv -> bn", 4, 0, dead=4)
    scan = scanned("constant.npz", "00" * 32, "badnet", float("nan"), (layer,))
    return Report("Scan of constant.npz", "jaxguard scan constant.npz", (scan,))


@pytest.fixture
def hostile() -> Report:
    """Markup, terminal codes, mathtext and right-to-left marks wherever a user or a checkpoint can put a string."""
    layer = clp_layer(f"$\\frac{{1}}$ [red] {HOSTILE}", 16, 0, outlier=4.0)
    scan = scanned(HOSTILE, HOSTILE, HOSTILE, 1.0, (layer,), reason=HOSTILE, notes=(HOSTILE, "[bold]\udcff"))
    repair = Repair(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, (layer,), {HOSTILE: 1.0}, notes=(HOSTILE,))
    (estimated,) = shapley_layers((16,), cuts=2)
    estimated = dataclasses.replace(estimated, name=HOSTILE)
    pruned = Repair(
        HOSTILE, HOSTILE, {}, (estimated,), trigger=dataclasses.replace(recovered(3, size=8), source=HOSTILE),
        path=dataclasses.replace(pruning_path((estimated,), tried=3, chosen=2), stop=HOSTILE),
    )  # fmt: skip
    trigger = badnets(3, 2, 8)
    trigger = TriggerExample(trigger.clean, trigger.triggered, attack=HOSTILE, target=0)
    judged = ownership(1, 1)
    found = [dataclasses.replace(one, suspect=HOSTILE, sha256=HOSTILE) for one in judged.verifications]
    found.append(dataclasses.replace(found[0], verdict=Verdict.INCONCLUSIVE))
    judged = dataclasses.replace(
        judged, owner=HOSTILE, owner_sha256=HOSTILE, certificate=HOSTILE, method=HOSTILE, options={HOSTILE: HOSTILE},
        verifications=tuple(found), sees=HOSTILE, blind=HOSTILE, notes=(HOSTILE,),
    )  # fmt: skip
    matrices = tuple(
        dataclasses.replace(one, method=HOSTILE, options={HOSTILE: HOSTILE}, owners=(HOSTILE,) * len(one.owners),
                            suspects=(HOSTILE,) * len(one.suspects))
        for one in (fingerprint_matrix(2, 3), fingerprint_matrix(2, 20))
    )  # fmt: skip
    return Report(
        HOSTILE, HOSTILE, (scan,), (repair, pruned), (judged,), matrices, trigger, environment={HOSTILE: HOSTILE}
    )  # fmt: skip


@pytest.fixture
def shapley() -> Report:
    """One repair: a recovered trigger, nine of fourteen cuts kept, Shapley values with errors; the trigger is known."""
    layers = shapley_layers()
    return shapley_report(recovered(10), layers, pruning_path(layers))


@pytest.fixture
def no_suspect() -> Report:
    """200 classes, none of which stands out; nothing was cut."""
    return shapley_report(recovered(200, target=None))


@pytest.fixture
def named() -> Report:
    """One class, named beforehand: nothing is known of the others."""
    found, unknown = recovered(10), np.full(10, np.nan)
    norms, success = (
        np.where(np.arange(10) == found.target, values, np.nan) for values in (found.norms, found.success)
    )
    found = dataclasses.replace(found, norms=norms, success=success, anomaly=unknown)
    return shapley_report(found, shapley_layers(), pruning_path(shapley_layers()))


@pytest.fixture
def undefined() -> Report:
    """Two classes, nothing but NaN, no patches kept, and a path without a cut."""
    nothing = np.full(2, np.nan)
    trigger = dataclasses.replace(recovered(2, shown=0), norms=nothing, success=nothing, anomaly=nothing)
    layers = tuple(dataclasses.replace(layer, errors=np.full(8, np.nan)) for layer in shapley_layers((8,), 0))
    path = PruningPath((), np.zeros(0), np.zeros(0), np.array([np.nan]), np.array([np.nan]), 0, "")
    return shapley_report(dataclasses.replace(trigger, masks=np.zeros(0), patterns=np.zeros(0)), layers, path)


@pytest.fixture
def owned() -> Report:
    """Two certificates, one of them with few references, and scores of five owners against twenty suspects and four."""
    few = dataclasses.replace(ownership(1, 2, references=5), method="sac", owner="runs/older.npz")
    return ownership_report(
        ownership(null=True), few, matrices=(fingerprint_matrix(5, 20), fingerprint_matrix(1, 4))
    )  # fmt: skip


@pytest.fixture
def crowd() -> Report:
    """Eighty suspects by one certificate, and thirty owners against a hundred suspects."""
    return ownership_report(ownership(20, 60, references=400), matrices=(fingerprint_matrix(30, 100),))


@pytest.fixture
def unjudged() -> Report:
    """No suspects, no references, scores that are not finite, one owner with itself."""
    nobody = dataclasses.replace(ownership(0, 0, references=0), sees="", blind="", options={}, notes=())
    lost = dataclasses.replace(ownership(1, 0, references=0), sees="", blind="")
    lost = dataclasses.replace(
        lost, verifications=tuple(dataclasses.replace(one, score=np.nan, distance=np.nan) for one in lost.verifications)
    )
    nothing = fingerprint_matrix(2, 3)
    nothing = dataclasses.replace(nothing, scores=np.full((2, 3), np.nan))
    return ownership_report(nobody, lost, matrices=(nothing, fingerprint_matrix(1, 1)))


@pytest.fixture(
    params=[
        "full",
        "scan_only",
        "deep",
        "bare",
        "hostile",
        "shapley",
        "no_suspect",
        "named",
        "undefined",
        "owned",
        "crowd",
        "unjudged",
    ],
)
def any_report(request: pytest.FixtureRequest) -> Report:
    return request.getfixturevalue(request.param)
