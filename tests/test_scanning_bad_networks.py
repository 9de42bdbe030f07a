"""Networks, images and functions that allow no search: each is one clear outcome, and other networks go on."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from test_scanning_triggers import CLASSES, SIDE, mlp, variables

from jaxguard.scanning import scan
from jaxguard.types import Batch, Network, Verdict

pytestmark = pytest.mark.usefixtures("searching")


def network(apply_fn, shape=(SIDE, SIDE, 1)):
    return Network(variables(0.1), apply_fn, shape)


def raises_for_many(known, images):
    if len(images) > 3:
        raise ValueError("no more than three images at once")
    return mlp(known, images)


def layers(inputs):
    draw = np.random.default_rng(0).normal
    return {"w1": np.float32(draw(size=(inputs, 9))), "w2": np.float32(draw(size=(9, 6)))}


NO_STATEMENT = {
    "constant": (network(lambda v, x: 0 * mlp(v, x)), "it answers all images alike"),
    "not finite": (network(lambda v, x: jnp.log(-1 - jnp.abs(mlp(v, x)))), "its logits are not finite"),
    "one class": (network(lambda v, x: mlp(v, x)[:, :1]), "it has one class: no trigger can change its answers"),
    "inputs of 0 to 255": (network(lambda v, x: mlp(v, x / 255)), "is the normalisation (--mean, --std) right?"),
    "no images": (Network(layers(6), lambda v, x: jnp.maximum(x @ v["w1"], 0) @ v["w2"], (6,)),
                  "its inputs float32[6] are no images [H, W, C]"),
    "images too small": (Network(layers(4), lambda v, x: jnp.maximum(x.reshape(len(x), -1) @ v["w1"], 0) @ v["w2"],
                                 (2, 2, 1)), "images of 2x2 pixels have no room for a patch"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_STATEMENT)
def test_a_network_that_allows_no_statement_is_inconclusive_with_the_reason(name):
    one, reason = NO_STATEMENT[name]
    (finding,) = scan({name: one}).findings
    assert finding.verdict is Verdict.INCONCLUSIVE and np.isnan([finding.score, finding.p_value]).all()
    assert finding.reason.startswith("no statement on triggers: ") and reason in finding.reason
    assert finding.search is not None and not finding.unsearched


def test_of_four_classes_each_is_judged_by_itself():
    (finding,) = scan(network(lambda v, x: mlp(v, x)[:, :4])).findings
    assert "expected transferability" in finding.reason and 0 <= finding.score <= 1
    assert any(note.startswith("Of 4 classes none can stand out") for note in finding.notes)


def test_a_function_that_raises_is_told_and_the_others_go_on():
    report = scan({"bad": network(raises_for_many), "flat": NO_STATEMENT["constant"][0]})
    bad, flat = report.findings
    told = "its function raised ValueError: no more than three images at once"
    assert (bad.verdict, bad.unsearched, bad.search) == (Verdict.INCONCLUSIVE, told, None)
    assert bad.reason == f"no trigger was searched: {told}" and flat.search is not None
    assert report.notes == (f"Triggers were searched in 1 of 2 checkpoints. Not searched were 1: {told} (bad).",)


def test_an_error_of_this_package_is_not_taken_for_the_function_s(monkeypatch):
    monkeypatch.delattr("jaxguard.inversion.universal.Clock")
    with pytest.raises(NameError, match="Clock"):
        scan(network(mlp))


def images(number, low=0.0, high=1.0):
    drawn = np.random.default_rng(0).uniform(low, high, (number, SIDE, SIDE, 1)).astype(np.float32)
    return Batch(drawn, np.arange(number) % CLASSES)


@pytest.mark.parametrize(
    ("clean", "told"),
    [(images(24, 0, 255), r"\[0, 1\]"), (images(24)._replace(labels=np.full(24, 9)), "labels"),
     (Batch(np.zeros((24, 5, 5, 1), np.float32), np.arange(24) % CLASSES), r"\(5, 5, 1\)|5, 5, 1")],
)  # fmt: skip
def test_wrong_clean_images_are_told(clean, told):
    (finding,) = scan(network(mlp), clean=clean).findings
    assert finding.search is None and finding.verdict is Verdict.INCONCLUSIVE
    assert finding.unsearched.startswith("expected ") and re.search(told, finding.unsearched)


def test_no_time_is_inconclusive_and_few_clean_images_are_not_passed_over():
    (finding,) = scan(network(mlp), budget=0, clean=images(7)).findings
    assert finding.verdict is Verdict.INCONCLUSIVE and "no size was searched to the end" in finding.reason
    assert "Procedural images took the place of 7 clean ones: at least 20 are needed." in finding.notes
