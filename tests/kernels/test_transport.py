"""Plans against hand-derived ones, POT and SciPy; ties, empty channels, stacks."""

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from scipy.optimize import linear_sum_assignment, linprog

from jaxguard.kernels import transport
from jaxguard.kernels.transport import entropic
from jaxguard.kernels.transport import problem as problems

SIZE = 32
GENERAL = ["exact", "sinkhorn"]


@pytest.fixture(params=GENERAL)
def solver(request):
    return request.param


def pruned_layer(size, seed=0, share=0.3):
    """Points, the same with the heaviest targets pruned, target masses, and what was pruned."""
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(size, 3 * size)).astype(np.float32) * rng.uniform(0.5, 2, (size, 1)).astype(np.float32)
    masses = np.exp(rng.normal(size=size))
    pruned = masses > np.quantile(masses, 1 - share)
    return np.where(pruned[:, None], 0, target).astype(np.float32), target, masses, pruned


def problem(size, seed=0, share=0.3):
    source, target, masses, _ = pruned_layer(size, seed, share)
    return transport.distances(source, target), masses, transport.equal_rows(source)


# ---------------------------------------------------------------- costs and ties


def test_distances_are_those_of_float64_and_exactly_zero_where_rows_are_equal():
    source, target, _, pruned = pruned_layer(SIZE)
    found = np.asarray(transport.distances(source, target))
    wide = np.linalg.norm(source.astype(np.float64)[:, None] - target[None], axis=-1)
    off = ~np.eye(SIZE, dtype=bool)
    np.testing.assert_allclose(found[off], wide[off], rtol=1e-5)
    np.testing.assert_array_equal(np.diag(found) == 0, ~pruned)


def test_distances_between_layers_of_different_widths():
    found = transport.distances(np.array([[0.0], [2.0], [5.0]]), np.array([[1.0], [2.0]]))
    assert found.tolist() == [[1, 2], [1, 0], [4, 3]]


def test_negative_zero_ties_with_zero():
    assert np.ptp(transport.equal_rows(np.array([[0.0, 1.0], [-0.0, 1.0]]))) == 0


# ---------------------------------------------------------------- plans


def test_a_plan_by_hand(solver):
    """Channel 0 keeps its third, channel 2 (nearer to 1 than to 0) sends all it has to 1."""
    cost = np.array([[0.0, 5.0, 4.0], [5.0, 0.0, 1.0], [4.0, 1.0, 0.0]])
    plan = transport.solve(cost, target=np.array([1.0, 2.0, 0.0]), solver=solver)
    tolerance = 1e-4 if solver == "sinkhorn" else 1e-12
    np.testing.assert_allclose(plan.matrix, np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0]]) / 3, atol=tolerance)
    np.testing.assert_allclose(plan.columns, [[1, 0, 0], [0, 0.5, 0], [0, 0.5, 1]], atol=tolerance)
    assert transport.objective(plan, cost) == pytest.approx(1 / 3, abs=tolerance)
    assert plan.converged and plan.error < tolerance


@pytest.mark.parametrize("share", [0.05, 0.4])
def test_exact_plans_cost_what_pot_s_full_plan_costs(share):
    cost, masses, ties = problem(SIZE, share=share)
    wide = np.asarray(cost, np.float64)
    reference = ot.emd(np.full(SIZE, 1 / SIZE), masses / masses.sum(), wide)
    plan = transport.solve(cost, target=masses, source_ties=ties)
    assert transport.objective(plan, cost) == pytest.approx((reference * wide).sum(), rel=1e-9)
    np.testing.assert_allclose(plan.matrix.sum(1), 1 / SIZE, atol=1e-12)
    np.testing.assert_allclose(plan.matrix.sum(0), masses / masses.sum(), atol=1e-12)
    assert plan.matrix.min() >= 0


def test_exact_plans_of_any_cost_are_those_of_scipys_linear_program():
    """Costs that are no metric, masses that differ on both sides."""
    rng = np.random.default_rng(3)
    for n, m in ((1, 1), (1, 7), (9, 1), (23, 31), (64, 17)):
        cost, source, target = rng.uniform(0.1, 1, (n, m)), rng.uniform(0.01, 1, n), rng.uniform(0.01, 1, m)
        source, target = source / source.sum(), target / target.sum()
        rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
        sums = {"A_eq": np.concatenate([rows, columns]), "b_eq": np.concatenate([source, target])}
        plan = transport.solve(cost, source, target)
        assert transport.objective(plan, cost) == pytest.approx(linprog(cost.ravel(), **sums).fun, rel=1e-9)
        np.testing.assert_allclose(plan.matrix.sum(1), source, atol=1e-10)
        np.testing.assert_allclose(plan.matrix.sum(0), target, atol=1e-10)


@pytest.mark.parametrize("share", [0.05, 0.4])
def test_sinkhorn_comes_within_a_thousandth_of_the_optimum(share):
    cost, masses, ties = problem(SIZE, share=share)
    best = transport.objective(transport.solve(cost, target=masses, source_ties=ties), cost)
    plan = transport.solve(cost, target=masses, source_ties=ties, solver="sinkhorn")
    assert plan.converged
    assert abs(transport.objective(plan, cost) / best - 1) < 1e-3
    assert plan.error < 1e-3
    np.testing.assert_allclose(plan.columns.sum(0), 1, atol=1e-5)


def test_sinkhorn_says_that_it_has_not_converged():
    cost, masses, _ = problem(SIZE)
    plan = transport.solve(cost, target=masses, solver="sinkhorn", max_iterations=10)
    assert not plan.converged
    assert plan.error > 1e-3


@pytest.mark.parametrize("assignment", ["hungarian", "exact"])
def test_equal_masses_are_an_assignment(assignment):
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(2, 40, 12))
    cost = transport.distances(source, target)
    rows, columns = linear_sum_assignment(np.asarray(cost))
    plan = transport.solve(cost, solver=assignment)
    expected = np.zeros((40, 40))
    expected[rows, columns] = 1
    np.testing.assert_array_equal(plan.columns, expected)
    np.testing.assert_allclose(plan.matrix, expected / 40, rtol=1e-6)


def test_a_shuffled_layer_is_put_back(solver):
    points = np.random.default_rng(1).normal(size=(24, 8))
    order = np.random.default_rng(2).permutation(24)
    plan = transport.solve(transport.distances(points[order], points), solver=solver)
    np.testing.assert_allclose(np.asarray(plan.columns).T @ points[order], points, atol=1e-3)


# ---------------------------------------------------------------- what stays, what is equal, what is empty


def test_what_can_stay_stays(solver):
    source, target, masses, pruned = pruned_layer(SIZE)
    cost = transport.distances(source, target)
    plan = transport.solve(cost, target=masses, source_ties=transport.equal_rows(source), solver=solver)
    wanted = masses / masses.sum()
    stays = ~pruned
    np.testing.assert_allclose(np.diag(plan.matrix)[stays], np.minimum(1 / SIZE, wanted)[stays], rtol=1e-5)
    light = stays & (wanted < 1 / SIZE)
    np.testing.assert_allclose(np.asarray(plan.columns)[:, light], np.eye(SIZE)[:, light], atol=1e-4)


def test_a_plan_does_not_depend_on_the_order_of_equal_channels(solver):
    """Exchanging equal sources changes nothing at all; reordering everything reorders the plan."""
    source, target, masses, pruned = pruned_layer(SIZE)
    cost, ties = np.asarray(transport.distances(source, target)), transport.equal_rows(source)
    plan = transport.solve(cost, target=masses, source_ties=ties, solver=solver)
    rows = np.arange(SIZE)
    rows[pruned] = rows[pruned][::-1]
    tolerance = 1e-6 if solver == "sinkhorn" else 1e-14
    np.testing.assert_allclose(plan.matrix[rows], plan.matrix, atol=tolerance)
    order = np.random.default_rng(5).permutation(SIZE)
    moved = transport.solve(cost[order][:, order], target=masses[order], source_ties=ties[order], solver=solver)
    np.testing.assert_allclose(moved.columns, np.asarray(plan.columns)[order][:, order], atol=1e-4)


def test_without_the_labels_equal_channels_may_get_different_shares():
    """What the labels are for: the plan of a vertex solver is one of many."""
    source, target, masses, pruned = pruned_layer(SIZE)
    cost = transport.distances(source, target)
    plan = transport.solve(cost, target=masses)
    assert np.ptp(plan.matrix[pruned], axis=0).max() > 1e-3
    canonical = transport.solve(cost, target=masses, source_ties=transport.equal_rows(source))
    assert np.ptp(canonical.matrix[pruned], axis=0).max() == 0
    assert transport.objective(canonical, cost) == pytest.approx(transport.objective(plan, cost), rel=1e-9)


def test_equal_targets_are_mixed_alike(solver):
    source = np.array([[0.0], [1.0], [10.0], [12.0]])
    target = np.array([[0.5], [11.0], [0.5], [11.0]])
    plan = transport.solve(transport.distances(source, target), target_ties=transport.equal_rows(target), solver=solver)
    np.testing.assert_allclose(plan.columns, [[0.5, 0] * 2, [0.5, 0] * 2, [0, 0.5] * 2, [0, 0.5] * 2], atol=1e-3)


def test_a_target_without_mass_is_its_nearest_source(solver):
    source = np.array([[0.0], [4.0], [4.0], [9.0]])
    target = np.array([[0.0], [5.0], [8.0], [9.0]])
    plan = transport.solve(
        transport.distances(source, target),
        target=np.array([0.0, 0.0, 1.0, 1.0]),
        source_ties=transport.equal_rows(source),
        solver=solver,
    )
    assert np.isfinite(plan.columns).all()
    np.testing.assert_array_equal(plan.columns[:, :2], [[1, 0], [0, 0.5], [0, 0.5], [0, 0]])
    np.testing.assert_allclose(plan.columns.sum(0), 1, atol=1e-6)


def test_identical_layers_do_not_move(solver):
    points = np.random.default_rng(0).normal(size=(12, 5))
    plan = transport.solve(transport.distances(points, points), solver=solver)
    np.testing.assert_array_equal(plan.columns, np.eye(12))
    assert plan.converged


# ---------------------------------------------------------------- stacks


def test_a_stack_is_its_members(solver):
    members = [problem(SIZE, seed, share) for seed, share in ((0, 0.1), (1, 0.3), (2, 0.6), (3, 0.1))]
    cost, masses, ties = (np.stack([np.asarray(member[k]) for member in members]) for k in range(3))
    shape = (2, 2, SIZE)
    stack = transport.solve(
        cost.reshape(*shape, SIZE),
        target=masses.reshape(shape),
        source_ties=ties.reshape(shape),
        solver=solver,
    )
    assert stack.matrix.shape == (2, 2, SIZE, SIZE) and stack.error.shape == stack.converged.shape == (2, 2)
    for k, (one, mass, tie) in enumerate(members):
        alone = transport.solve(one, target=mass, source_ties=tie, solver=solver)
        np.testing.assert_allclose(stack.columns[divmod(k, 2)], alone.columns, atol=1e-6)


def test_members_of_a_stack_may_be_solved_in_step_as_on_accelerators():
    members = [problem(24, seed) for seed in (0, 1)]
    cost, masses, ties = (np.stack([np.asarray(member[k]) for member in members]) for k in range(3))
    given = problems.problem(cost, None, masses, ties, None)
    in_step = jax.jit(jax.vmap(entropic.sinkhorn))(problems.Problem(*(jnp.asarray(part)[:, None] for part in given)))
    assert in_step[3].all()
    for k, (one, mass, tie) in enumerate(members):
        alone = transport.solve(one, target=mass, source_ties=tie, solver="sinkhorn")
        np.testing.assert_allclose(in_step[1][k, 0], alone.columns, atol=1e-3)


def test_the_default_is_exact_and_says_so():
    cost, masses, ties = problem(16)
    found = transport.solve(cost, target=masses, source_ties=ties)
    assert (found.solver, found.matrix.dtype) == ("exact", np.float64)
    assert transport.solve(cost, solver="sinkhorn").solver == "sinkhorn"


# ---------------------------------------------------------------- inside transformed functions


def test_the_exact_solver_is_called_back_from_a_program():
    cost, masses, ties = problem(16)
    expected = transport.solve(cost, target=masses, source_ties=ties)

    @jax.jit
    def solve(cost, masses, ties):
        plan = transport.solve(cost, target=masses, source_ties=ties)
        return plan, transport.objective(plan, cost)

    plan, objective = solve(cost, masses, ties)
    assert plan.solver == "exact" and plan.converged
    np.testing.assert_allclose(plan.columns, expected.columns, atol=1e-6)
    assert objective == pytest.approx(transport.objective(expected, cost), rel=1e-5)


@pytest.mark.parametrize("masses", [[1.0, -1.0], [0.0, 0.0], [np.nan, 1.0]])
def test_masses_without_a_plan_are_flagged_where_no_error_can_be_raised(masses):
    given = np.array([[1.0, 2.0], masses])
    plan = jax.jit(lambda target: transport.solve(np.ones((2, 2, 2)), target=target))(given)
    assert plan.converged.tolist() == [True, False]
    assert np.isnan(plan.matrix[1]).all() and np.isfinite(plan.matrix[0]).all()


def test_equal_rows_are_the_same_inside_a_program():
    points = np.random.default_rng(0).integers(0, 2, (20, 3)).astype(np.float32)
    points[0] *= -1
    np.testing.assert_array_equal(jax.jit(transport.equal_rows)(points), transport.equal_rows(points))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "magic"}, "expected a solver among exact.*got 'magic'"),
        ({"target": np.array([1.0, -1.0])}, "expected finite target masses >= 0 .* got -1 to 1"),
        ({"target": np.zeros(2)}, "expected finite target masses"),
        ({"source": np.array([1.0, np.nan])}, "expected finite source masses"),
        ({"source": np.ones(3)}, r"expected source masses of shape \(2,\), got \(3,\)"),
        ({"target": np.array([1.0, 2.0]), "solver": "hungarian"}, "take solver='exact'"),
        ({"epsilon": 0.1}, r"expected no settings for solver 'exact', got \['epsilon'\]"),
    ],
)
def test_bad_problems_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        transport.solve(np.ones((2, 2)), **options)
