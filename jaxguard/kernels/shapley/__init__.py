"""Shapley values by permutation sampling, of any value function and any number of players.

A coalition is a vector of gates, 1 for a player that takes part. A pass removes the players one by one in some order
and credits each with what the value loses. Passes in uniformly random orders estimate the Shapley value without bias
(Castro, Gomez and Tejada, "Polynomial calculation of the Shapley value based on sampling", 2009). A sample is one
compiled program; coalitions are evaluated `chunk` at a time, which bounds memory.

Two ways to save evaluations bias the estimate, and both are kept apart or bounded: a pass that stops where the value
has fallen to `threshold` leaves each later player's marginal out, an error of at most what was left of the value; and
an epsilon-greedy order (`greedy_order`) is not uniform, so its marginals are for proposing players, not for values.
"""

from jaxguard.kernels.shapley.bandit import top_k
from jaxguard.kernels.shapley.estimate import Estimate, Moments
from jaxguard.kernels.shapley.game import ValuesFn, traced
from jaxguard.kernels.shapley.greedy import epsilon_greedy, greedy_order
from jaxguard.kernels.shapley.passes import marginals
from jaxguard.kernels.shapley.sampling import Pairing, add, permutation_sampling, rows, sample

__all__ = [
    "Estimate",
    "Moments",
    "Pairing",
    "ValuesFn",
    "add",
    "epsilon_greedy",
    "greedy_order",
    "marginals",
    "permutation_sampling",
    "rows",
    "sample",
    "top_k",
    "traced",
]
