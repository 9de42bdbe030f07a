"""Optimal transport between the channels of two layers: the plan `T >= 0` of least `sum_ij T_ij C_ij`.

Its row sums are the source masses and its column sums the target masses. Costs are distances in one metric space, so
a channel that lies in the same place in both layers (`C_ii = 0`) can keep `min(a_i, b_i)` where it is without loss, and
only the rest, the *residual*, is transported. A pruned layer and its original differ in few channels: the residual is
small, and an entropic plan of it does not blur the channels that stayed. What is identical is treated alike: masses of
channels that are equal are spread over them evenly, so that a plan does not depend on their order.

`exact` solves on the host, to the last digit, and is the default on every machine; `entropic` is Sinkhorn's algorithm
on the device.
"""

from jaxguard.kernels.transport.entropic import sinkhorn
from jaxguard.kernels.transport.plan import Plan, Solver, objective, solve
from jaxguard.kernels.transport.problem import Problem, distances, equal_rows

__all__ = ["Plan", "Problem", "Solver", "distances", "equal_rows", "objective", "sinkhorn", "solve"]
