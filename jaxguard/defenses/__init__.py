"""Published defenses, one per file; `DEFENSES` is the table of them."""

from jaxguard.defenses.clp import channel_bounds, clp
from jaxguard.defenses.ft import ft
from jaxguard.defenses.ft_sam import ft_sam
from jaxguard.defenses.protocol import Context, Defense, DefenseReport
from jaxguard.defenses.tsbd import tsbd

DEFENSES: dict[str, Defense] = {
    "clp": clp,
    "ft": ft,
    "ft-sam": ft_sam,
    "tsbd": tsbd,
}
"""Name on the command line -> `(variables, context, key, **options) -> (variables, report)`."""

__all__ = ["DEFENSES", "Context", "Defense", "DefenseReport", "channel_bounds", "clp", "ft", "ft_sam", "tsbd"]
