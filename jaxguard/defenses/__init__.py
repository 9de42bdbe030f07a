"""Published defenses, one per file; `DEFENSES` is the table of them."""

from jaxguard.defenses.anp import anp
from jaxguard.defenses.bnp import bnp
from jaxguard.defenses.clp import clp
from jaxguard.defenses.ep import ep
from jaxguard.defenses.fine_pruning import fine_pruning
from jaxguard.defenses.ft import ft
from jaxguard.defenses.ft_sam import ft_sam
from jaxguard.defenses.i_bau import i_bau
from jaxguard.defenses.nad import nad
from jaxguard.defenses.neural_cleanse import neural_cleanse
from jaxguard.defenses.otbr import otbr
from jaxguard.defenses.protocol import Context, Defense, DefenseReport
from jaxguard.defenses.rnp import rnp
from jaxguard.defenses.shapley_pruning import shapley_pruning
from jaxguard.defenses.tsbd import tsbd

DEFENSES: dict[str, Defense] = {
    "anp": anp,
    "bnp": bnp,
    "clp": clp,
    "ep": ep,
    "fine-pruning": fine_pruning,
    "ft": ft,
    "ft-sam": ft_sam,
    "i-bau": i_bau,
    "nad": nad,
    "neural-cleanse": neural_cleanse,
    "otbr": otbr,
    "rnp": rnp,
    "shapley": shapley_pruning,
    "tsbd": tsbd,
}
"""Name on the command line -> `(variables, context, key, **options) -> (variables, report)`."""

__all__ = [
    "DEFENSES",
    "Context",
    "Defense",
    "DefenseReport",
    "anp",
    "bnp",
    "clp",
    "ep",
    "fine_pruning",
    "ft",
    "ft_sam",
    "i_bau",
    "nad",
    "neural_cleanse",
    "otbr",
    "rnp",
    "shapley_pruning",
    "tsbd",
]
