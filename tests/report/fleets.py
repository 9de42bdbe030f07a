"""What synthetic reports of large scans are made of."""

import math

import numpy as np

from jaxguard.types import Finding, LayerSummary, Provenance, Reference, Report, Verdict

NAN = math.nan
ENVIRONMENT = {"jaxguard": "0.1.0", "jax": "0.10.2", "backend": "cpu"}
ARCHITECTURES = ("preact_resnet18", "cnn:width=0.5", "vgg19_bn", "vit:patch=4")
NO_PROFILE = "no reference profile was given"


def layers(count: int, seed: int) -> tuple[LayerSummary, ...]:
    """Layers of 32 channels, one of them with an outlier."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(1.8, 2.9, count)
    z[count // 2] += 2.5
    names = (f"layer{1 + k // 4}_{k // 2 % 2}/conv{1 + k % 2}" for k in range(count))
    return tuple(
        LayerSummary(
            f"{name} -> {name.replace('conv', 'bn')}", 32, int(k == 1),
            1.2, 0.31, 1.2 + 0.31 * float(value), int(rng.integers(32)), float(value), int(value > 3),
        )
        for k, (name, value) in enumerate(zip(names, z, strict=True))
    )  # fmt: skip


def finding(name: str = "runs/a.safetensors", verdict: Verdict = Verdict.NO_EVIDENCE, **fields) -> Finding:
    """One checkpoint; the rest of its fields are ordinary."""
    where = {"sha256": "9f2c" * 16, "size": 44_712_345, "format": "safetensors", "architecture": ARCHITECTURES[0]}
    plain = {
        "cohort": ARCHITECTURES[0],
        "z": 2.61,
        "score": 0.125,
        "p_value": 0.5,
        "q_value": 0.75,
        "looks": ("weights",),
    }
    where |= {key: fields.pop(key) for key in list(fields) if key in where}
    return Finding(Provenance(name, **where), verdict, **(plain | fields))


def failed(name: str, reason: str) -> Finding:
    return Finding(Provenance(name, size=44_712_345), Verdict.ERROR, reason)


def reference(cohort: str, count: int = 64, seed: int = 0) -> Reference:
    rng = np.random.default_rng(seed)
    return Reference(cohort, rng.normal(0, 1, count), rng.normal(3, 1.2, count // 2), 0.875, (0.72, 0.95))


def fleet(count: int, *, suspected: int = 3, errors: int = 2, skipped: int = 3, cohorts: int = 2) -> Report:
    """A judged fleet: scores are normal, those of suspected checkpoints far to the right; every tenth inconclusive."""
    rng = np.random.default_rng(count)
    findings = []
    for k in range(count):
        architecture = ARCHITECTURES[k % min(cohorts, 4)] + (f":classes={k % cohorts}" if k % cohorts > 3 else "")
        score = float(np.round(rng.normal(), 4))
        p = float(np.round(0.5 * math.erfc(score / math.sqrt(2)), 6))
        common = {
            "name": f"/data/fleet/id-{k:08d}/{'model' if k % 3 else 'Final model'}.safetensors",
            "sha256": rng.bytes(32).hex(), "architecture": architecture, "cohort": architecture,
            "size": int(rng.integers(10**4, 10**8)), "z": float(np.round(rng.uniform(2, 5), 4)),
        }  # fmt: skip
        if k < suspected:
            findings.append(
                finding(
                    **common, verdict=Verdict.SUSPECTED, score=round(4.5 + k % 37 / 8, 3), p_value=0.0154,
                    q_value=0.0312, looks=("weights", "triggers") if k % 2 == 0 else ("weights",), layers=layers(18, k),
                )
            )  # fmt: skip
        elif k < suspected + errors:
            findings.append(
                failed(common["name"], f"CheckpointError: expected a header of 8 bytes, got {k} in {k}.bin")
            )
        elif k % 10 == 9:
            findings.append(
                finding(
                    **common, verdict=Verdict.INCONCLUSIVE, score=NAN, p_value=NAN, q_value=NAN,
                    reason=f"only {k % 19} references of its architecture, {19} are needed for p ≤ 0.05",
                )
            )  # fmt: skip
        else:
            findings.append(finding(**common, score=score, p_value=p, q_value=min(1.0, round(p * 1.5 + 0.05, 6))))
    order = np.random.default_rng(0).permutation(count)
    return Report(
        "Fleet scan of /data/fleet", "jaxguard scan /data/fleet --profile profile.json --out results",
        tuple(findings[k] for k in order),
        skipped=tuple((f"/data/fleet/notes-{k}.txt", "no known format") for k in range(skipped)),
        profile="profile.json (sha256 3d1f20aa)", references=tuple(reference(name) for name in ARCHITECTURES[:cohorts]),
        seconds=31.4, bytes_read=count * 44_712_345, reused=count // 5,
        notes=("The scan was resumed once.",), environment=ENVIRONMENT,
    )  # fmt: skip


def unjudged(count: int = 12) -> Report:
    """A fleet without a profile: z-scores, and nothing that says what they mean."""
    rng = np.random.default_rng(1)
    findings = tuple(
        finding(f"runs/{k}.npz", Verdict.INCONCLUSIVE, format="npz", z=float(rng.uniform(2, 5)), score=NAN, p_value=NAN,
              q_value=NAN, reason=NO_PROFILE)
        for k in range(count)
    )  # fmt: skip
    return Report("Fleet scan of runs", "jaxguard scan runs", findings, environment=ENVIRONMENT)


def hostile(text: str) -> Report:
    """One string wherever a user or a checkpoint can put one."""
    strange = LayerSummary(text, 8, 0, 1.0, 0.2, 1.9, 3, 4.5, 1)
    empty = LayerSummary(text, 4, 4, NAN, NAN, NAN, -1, NAN, 0)
    same = {"sha256": text, "format": text, "architecture": text, "cohort": text, "reason": text, "looks": (text,)}
    findings = (
        finding(text, Verdict.SUSPECTED, **same, layers=(strange, empty)), finding(text, Verdict.INCONCLUSIVE, **same),
        finding(text, Verdict.INCONCLUSIVE, **same), finding(text, **same), failed(text, text),
    )  # fmt: skip
    known = Reference(text, np.array([0.1, 0.2, NAN]), np.array([0.9]), 0.5, (0.01, 0.99))
    return Report(
        text, text, findings, skipped=((text, text),), profile=text, references=(known,), notes=(text,),
        environment={text: text},
    )  # fmt: skip
