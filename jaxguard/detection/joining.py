"""Two p-values of one network, by a reference profile and by a trigger search, joined into one.

    p = min(1, 2 min(p_profile, p_search))

Bonferroni's rule: where each is at most `x` for a share `x` of clean networks, at most, so is `p`, however the two
depend on each other. Fisher's and other rules that gain from two middling values need independence, and the two are
not: what makes a network's weights unusual may make its classes easy to reach. The price is a factor of two: with a
profile alone 19 references reach 0.05, after a search 39 are needed.

A search counts with its p-value where its trigger works, else with 1. The rule also holds where only the checkpoints
of the smallest p-values by the profile are searched and the others keep theirs.
"""

from __future__ import annotations

import math


def joined(by_profile: float, by_search: float) -> float:
    """The joint p-value.

    Args:
        by_profile: NaN where there is no profile that fits.
        by_search: NaN where nothing was searched.

    Returns:
        The other one where one is NaN, as what is not there costs nothing.

    Example:
        >>> joined(0.3, 0.01), joined(0.02, 1.0), joined(math.nan, 0.01), joined(0.8, 0.9)
        (0.02, 0.04, 0.01, 1.0)
    """
    known = [one for one in (by_profile, by_search) if not math.isnan(one)]
    return min(1.0, len(known) * min(known)) if known else math.nan
