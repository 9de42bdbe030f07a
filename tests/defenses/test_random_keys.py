"""Keys of random streams among the variables, as in the whole state of an NNX model, are passed on."""

import jax
import numpy as np
import pytest
import test_contract
import zoo
from flax import nnx

import jaxguard
from jaxguard.defenses import Data
from jaxguard.graph.program import is_key, numeric_leaves
from jaxguard.types import Batch, Network, Verdict

IMAGES = zoo.images(2, 2, 3)
DATA = Data(Batch(IMAGES, np.arange(len(IMAGES), dtype=np.int32) % 4), np.repeat(IMAGES, 4, axis=0))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(12, 8, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.hidden = nnx.Linear(8, 6, rngs=rngs)
        self.head = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x.reshape(len(x), -1))))
        return self.head(nnx.relu(self.hidden(self.drop(x))))


def network(wrap, unwrap):
    model = Net(nnx.Rngs(0))
    model.eval()
    definition, state = nnx.split(model)

    def apply_fn(v, x):
        return nnx.merge(definition, unwrap(v))(x)

    return Network(wrap(state), apply_fn, IMAGES.shape[1:], lambda v, x: (apply_fn(v, x), v))


NETWORKS = {
    "a whole state": network(lambda state: state, lambda v: v),
    "among the parameters": network(lambda state: {"params": state}, lambda v: v["params"]),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_scan_leaves_keys_out_and_accounts_for_them(kind):
    (finding,) = jaxguard.scan(NETWORKS[kind]).findings
    assert finding.verdict is not Verdict.ERROR, finding.reason
    assert [layer.name for layer in finding.layers] == ["first -> norm", "hidden"]
    assert len(finding.provenance.sha256) == 64


@pytest.mark.parametrize(
    "name", ["clp", "fine-pruning", "nad", "otbr", pytest.param("shapley", marks=pytest.mark.slow)]
)
def test_defenses_pass_keys_on(name):
    suspect = NETWORKS["a whole state"]
    repaired = jaxguard.repair(
        suspect, name, jax.random.key(1), clean=DATA.clean, mixed=DATA.mixed, options=test_contract.ROWS[name].quick
    )[0].network.variables
    assert jax.tree.structure(repaired) == jax.tree.structure(suspect.variables)
    pairs = list(zip(jax.tree.leaves(suspect.variables), jax.tree.leaves(repaired), strict=True))
    keys = [(old, new) for old, new in pairs if is_key(old)]
    assert keys
    assert all(np.array_equal(*map(jax.random.key_data, pair)) for pair in keys)
    assert any(not np.array_equal(old, new) for old, new in pairs if not is_key(old))
    assert all(np.isfinite(leaf).all() for leaf in numeric_leaves(repaired).values())
