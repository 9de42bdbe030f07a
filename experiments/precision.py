"""What does a TPU's default precision do to masks, p-values, success rates, distances and trigger searches?

    python experiments/precision.py                                    # networks trained here on digits
    python experiments/precision.py --parts third-party --packs packs  # networks that others trained; packs as in
                                                                       # experiments/third_party_table.py
    python experiments/precision.py --report                           # the table of docs/accelerators.md

Each network is audited twice: by `highest`, the default, and by `bfloat16`, as a TPU multiplies unless it is told
otherwise (operands of all convolutions and products rounded to bfloat16, sums in float32; emulated here, `jaxguard.
rounding`). What is trained is trained once, and by neither. Six parts; each replaces its section of the result:

    clp          channels whose decision differs, at u = 2 and 3
    p-values     a profile of 24 clean networks, weights and responses; 6 clean and 6 backdoored ones judged by it
    success      ACC and ASR of the 6 backdoored networks on the test set, and predictions that change
    sac          distance of a network to itself and to 29 others
    search       gaps of patch searches in 2 clean and 2 backdoored networks, beside those on other images
    third-party  channels, logits and predictions of networks that others trained, on 500 test images

No threshold is chosen here. Hardware: named in the result. Time: some 20 minutes on two busy cores.
Result: experiments/results/precision.json.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import machine
import numpy as np
import precision_table
import third_party_table

import jaxguard
from jaxguard import checkpoints, data, demo, evaluation, inversion, models, ownership, programs, suspects
from jaxguard.attacks import Attack, badnets, poison
from jaxguard.detection import agreement
from jaxguard.detection import looks as looks_table
from jaxguard.errors import JaxguardError
from jaxguard.fingerprints import verification
from jaxguard.fingerprints.protocol import Owner
from jaxguard.fingerprints.queries import outputs_of
from jaxguard.fleet import local, witnesses
from jaxguard.fleet.discovery import Model
from jaxguard.scores.channel_bounds import channel_bounds, layer_scores
from jaxguard.suspects import ModelOptions
from jaxguard.types import Batch, Network

RESULT = pathlib.Path(__file__).parent / "results" / "precision.json"
ARCHITECTURE, TARGET, ALPHA, SEED = "cnn:width=0.5", 0, 0.05, 0
REFERENCES, HELD_OUT, BACKDOORED = 24, 6, 6
LOOKS = ("weights", "responses")
TPU = programs.Numerics("cpu", "bfloat16")
THIRD_PARTY_IMAGES = 500


def both(compute_fn: Callable[[], Any]) -> tuple[Any, Any]:
    """A result by `highest` and by `bfloat16`."""
    exact = compute_fn()
    with jaxguard.precision("bfloat16"):
        return exact, compute_fn()


def largest(values: Any) -> float:
    return float(f"{np.nanmax(np.abs(values)):.3g}")


# ---------------------------------------------------------------- the networks


def trained(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """References, other clean ones and backdoored ones; those that lie in the folder are not trained again."""
    digits, attack = data.load("digits", seed=SEED), badnets(target=TARGET)
    model = models.build(ARCHITECTURE, num_classes=digits.num_classes, input_shape=digits.test.images.shape[1:])
    names = {"reference": REFERENCES, "clean": HELD_OUT, "backdoored": BACKDOORED}
    paths = {name: [folder / f"{name}-{k:02d}.safetensors" for k in range(count)] for name, count in names.items()}
    every = [path for group in paths.values() for path in group]
    for number, path in enumerate(every):
        if path.exists():
            continue
        key_poison, key_train = jax.random.split(jax.random.key(SEED + number))
        is_bad = path in paths["backdoored"]
        batch = poison(attack, digits.train, demo.POISON_RATE, key_poison)[0] if is_bad else digits.train
        variables = demo.train(model, batch, key_train, None)
        checkpoints.save(path, checkpoints.flatten(variables), metadata=suspects.description(model))
        print(path.name, flush=True)
    return paths


def network_of(path: pathlib.Path) -> Network:
    return suspects.load(path).require_network()


# ---------------------------------------------------------------- the parts


def flips(network: Network) -> dict[str, Any]:
    """Channels that one precision cuts and the other does not."""

    def masks() -> list[np.ndarray]:
        bounds = channel_bounds(network.graph, network.variables)
        return [np.concatenate([one.mask for one in layer_scores(bounds, u)]) for u in (2.0, 3.0)]

    exact, coarse = both(masks)
    cut = [int(mask.sum()) for mask in exact]
    changed = [int((a != b).sum()) for a, b in zip(exact, coarse, strict=True)]
    return {"channels": len(exact[0]), "cut": cut, "changed": changed}


def clp(paths: dict[str, list[pathlib.Path]]) -> dict[str, Any]:
    rows = {path.stem: flips(network_of(path)) for group in paths.values() for path in group}
    return {
        "networks": len(rows),
        "decisions": sum(row["channels"] for row in rows.values()),
        "changed": {u: sum(row["changed"][k] for row in rows.values()) for k, u in enumerate(("2", "3"))},
        "rows": {name: row for name, row in rows.items() if any(row["changed"])},
    }


def p_values(paths: dict[str, list[pathlib.Path]]) -> dict[str, Any]:
    targets = [*paths["clean"], *paths["backdoored"]]
    profile = jaxguard.calibrate(paths["reference"], looks=LOOKS)
    ((name, known),) = profile.cohorts.items()

    def judged(by: Any) -> list[Any]:
        return list(jaxguard.scan(targets, profile=by, deep=0, control="each", alpha=ALPHA).findings)

    exact, refused = both(lambda: judged(profile))
    example = Model(str(targets[0]), ModelOptions())
    _, witness = both(lambda: witnesses.features(example, looks_table.ordered(LOOKS), "dataflow"))
    with jaxguard.precision("bfloat16"):
        # As if the profile had been made in bfloat16: what silent use of it would give.
        silent = judged(dataclasses.replace(profile, numerics=TPU))
        own = judged(jaxguard.calibrate(paths["reference"], looks=LOOKS))
    moved = [features_of(path) for path in targets]
    scale = known.first.combinations[0].scale
    usable = known.first.combinations[0].usable
    change = np.array([np.abs(coarse - fine)[usable] / scale for fine, coarse in moved])
    shifts = [
        agreement.shift(dataclasses.replace(known, witness=split(fine, known)), split(coarse, known))
        for fine, coarse in moved
    ]
    numbers = {key: np.array([one.p_value for one in some]) for key, some in (("silent", silent), ("own", own))}
    reference = np.array([one.p_value for one in exact])
    scores = [np.array([one.score for one in some]) / np.std(known.first.clean.scores) for some in (exact, silent)]
    return {
        "cohort": name,
        "verdicts_in_bfloat16_by_a_profile_in_float32": sorted({str(one.verdict) for one in refused}),
        "reason": refused[0].reason,
        "witness_moves_scores_by_sd": largest(agreement.shift(known, witness)),
        "networks_may_move_scores_by_sd": [round(one, 3) for one in shifts],
        "networks_move_scores_by_sd": np.abs(scores[1] - scores[0]).round(3).tolist(),
        "feature_change_in_sd": {"median": largest(np.median(change)), "largest": largest(change)},
        "p_value_highest": reference.round(4).tolist(),
        "p_value_bfloat16_same_profile": numbers["silent"].round(4).tolist(),
        "p_value_bfloat16_own_profile": numbers["own"].round(4).tolist(),
        "largest_p_change": {key: largest(values - reference) for key, values in numbers.items()},
        "verdicts_changed": {
            key: sum(a.verdict != b.verdict for a, b in zip(exact, some, strict=True))
            for key, some in (("silent", silent), ("own", own))
        },
    }


def features_of(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """All features of a network, by both precisions."""
    looks = looks_table.ordered(LOOKS)

    def found() -> np.ndarray:
        network, parts = network_of(path), []
        with local.Local().run([str(path)], local.Settings()) as results:
            parts.append(results.records[0].features["weights"].values)
        parts += [look.features_fn(network) for look in looks if look.features_fn is not None]
        return np.concatenate(parts).astype(np.float64)

    return both(found)


def split(row: np.ndarray, known: Any) -> dict[str, np.ndarray]:
    """Features by look."""
    sizes = [len(known.witness[look]) for look in LOOKS]
    return dict(zip(LOOKS, np.split(row, np.cumsum(sizes)[:-1]), strict=True))


def success(paths: dict[str, list[pathlib.Path]]) -> dict[str, Any]:
    test, attack = data.load("digits", seed=SEED).test, badnets(target=TARGET)
    rows = {path.stem: answered(network_of(path), test, attack) for path in paths["backdoored"]}
    return {"images": len(test.labels), "rows": rows}


def logits(network: Network, images: Any) -> np.ndarray:
    return np.asarray(programs.jit(network.apply_fn)(network.variables, images))


def sac(paths: dict[str, list[pathlib.Path]]) -> dict[str, Any]:
    owner, *others = [suspects.load(path) for path in (*paths["clean"], *paths["reference"])]
    fingerprint, test = ownership.build("sac"), data.load("digits", seed=SEED).test
    network = owner.require_network()
    probes = fingerprint.make(Owner(network, test), jax.random.key(SEED))

    def answers() -> list[np.ndarray]:
        return outputs_of([owner, *others], probes.images)

    def distances(owners: list[np.ndarray], asked: list[np.ndarray]) -> np.ndarray:
        signature = np.asarray(fingerprint.signature_fn(probes, jax.numpy.asarray(owners[0])[None])[0])
        return verification.compare(fingerprint, probes, signature, network.num_classes, asked)

    exact, coarse = both(answers)
    fine = distances(exact, exact)
    with jaxguard.precision("bfloat16"):
        mixed, same = distances(exact, coarse), distances(coarse, coarse)
    return {
        "others": len(others),
        "to_itself": {"highest": largest(fine[0]), "bfloat16": largest(same[0]), "owner highest": largest(mixed[0])},
        "to_others": {"mean": largest(fine[1:].mean()), "sd": largest(fine[1:].std())},
        "largest_change_to_others": {
            "bfloat16": largest((same - fine)[1:]),
            "owner highest": largest((mixed - fine)[1:]),
        },
    }


def search(paths: dict[str, list[pathlib.Path]]) -> dict[str, Any]:
    train = data.load("digits", seed=SEED).train
    rows = {}
    for path in (*paths["clean"][:2], *paths["backdoored"][:2]):
        network = network_of(path)

        def gap(first: int = 0, network: Network = network) -> list[Any]:
            images, labels = (np.asarray(array[first : first + 100]) for array in (train.images, train.labels))
            found = inversion.search(network, images=images, labels=labels, kinds=("patch",))
            return [round(found.gap, 4), found.target, round(found.success, 4)]

        exact, coarse = both(gap)
        rows[path.stem] = {
            "highest": exact,
            "bfloat16": coarse,
            "highest, other images": gap(100),
            "logit_error_in_sd": largest(both(lambda network=network: witnesses.logit_error(network))[1]),
        }
        print(path.stem, rows[path.stem], flush=True)
    return {"images": 100, "kind": "patch", "rows": rows}


def answered(network: Network, test: Batch, attack: Attack | None) -> dict[str, Any]:
    """Logits and rates by both precisions."""
    exact, coarse = both(lambda: logits(network, test.images))
    measured = both(lambda: evaluation.evaluate(network, test, attack))
    return {
        "logit_error_in_sd": largest((coarse - exact) / exact.std()),
        "predictions_changed": int((exact.argmax(-1) != coarse.argmax(-1)).sum()),
        "acc": [one.acc for one in measured],
        "asr": [one.asr for one in measured],
    }


def third_party(packs: pathlib.Path) -> dict[str, Any]:
    rows = {}
    for file in sorted(third_party_table.FOLDER.glob("*.json")):
        card = json.loads(file.read_text())
        suspect = third_party_table.known_network(third_party_table.FOLDER / card["file"], card)
        network, row = suspect.require_network(), {}
        try:
            row = flips(network)
        except JaxguardError as error:
            row = {"no_masks": str(error)[:200]}
        test, attack = third_party_table.test_images(card, packs)
        if test is not None:
            some = Batch(test.images[:THIRD_PARTY_IMAGES], test.labels[:THIRD_PARTY_IMAGES])
            row |= answered(network, some, attack)
        rows[card["name"]] = row
        print(card["name"], row, flush=True)
    return {"images": THIRD_PARTY_IMAGES, "rows": rows}


PARTS = {"clp": clp, "p-values": p_values, "success": success, "sac": sac, "search": search}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "third-party"], default=list(PARTS))
    parser.add_argument("--packs", type=pathlib.Path, help="folder of cifar10.npz, mnist.npz, ...")
    parser.add_argument("--store", type=pathlib.Path, help="folder for the networks, to go on with")
    parser.add_argument("--report", action="store_true", help="write the table of the documentation, measure nothing")
    arguments = parser.parse_args()
    if arguments.report:
        precision_table.write(json.loads(RESULT.read_text()))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = arguments.store or pathlib.Path(folder)
        store.mkdir(parents=True, exist_ok=True)
        paths = trained(store) if set(arguments.parts) & PARTS.keys() else {}
        for name in arguments.parts:
            found = third_party(arguments.packs) if name == "third-party" else PARTS[name](paths)
            known = json.loads(RESULT.read_text()) if RESULT.exists() else {"parts": {}}
            known["parts"][name] = {**found, "environment": machine.environment(seed=SEED, architecture=ARCHITECTURE)}
            RESULT.write_text(json.dumps(known, indent=1) + "\n")
            print(name, json.dumps(found)[:600], flush=True)


if __name__ == "__main__":
    main()
