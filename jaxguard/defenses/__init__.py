"""Published defenses, one per file; `DEFENSES` is the table of them.

A defense maps a network to a repaired one of the same tree, shapes and dtypes:

    repaired, report = DEFENSES["ft-sam"](network, Data(clean=batch), jax.random.key(0), epochs=20)

Adding one is a file, a row here and a row of tests/defenses/test_contract.py.
"""

from jaxguard import methods
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
from jaxguard.defenses.protocol import NO_DATA, Data, Defense, DefenseReport
from jaxguard.defenses.rnp import rnp
from jaxguard.defenses.shapley import shapley
from jaxguard.defenses.tsbd import tsbd
from jaxguard.methods import Method

CLEAN = frozenset({"clean images"})
TRAINING = CLEAN | {"training mode"}

DEFENSES = methods.table(
    Method(
        anp, "gates that withstand adversarial noise; those that close are cut", TRAINING, "Wu & Wang, NeurIPS 2021"
    ),
    Method(
        bnp, "cuts channels whose clean statistics differ from the recorded ones", CLEAN, "Zheng et al., NeurIPS 2022"
    ),
    Method(clp, "cuts channels of large Lipschitz bounds", paper="Zheng et al., ECCV 2022"),
    Method(
        ep,
        "cuts channels of low entropy on training images",
        frozenset({"training images"}),
        "Zheng et al., NeurIPS 2022",
    ),
    Method(fine_pruning, "cuts dormant channels, then fine-tunes", TRAINING, "Liu et al., RAID 2018"),
    Method(ft, "plain fine-tuning, the baseline", TRAINING),
    Method(ft_sam, "sharpness-aware fine-tuning", TRAINING, "Zhu et al., ICCV 2023"),
    Method(i_bau, "unlearns adversarial perturbations by implicit hypergradients", CLEAN, "Zeng et al., ICLR 2022"),
    Method(nad, "distils the attention of a fine-tuned copy", TRAINING, "Li et al., ICLR 2021"),
    Method(neural_cleanse, "unlearns the recovered trigger", TRAINING, "Wang et al., S&P 2019"),
    Method(otbr, "prunes what unlearning noise moves, fuses by optimal transport", paper="Lin et al., AAAI 2025"),
    Method(rnp, "unlearns, learns gates back, cuts those that stay closed", TRAINING, "Li et al., ICML 2023"),
    Method(
        shapley,
        "cuts channels the recovered trigger works through; better with a few images",
        paper="after Guan et al., CVPR 2022",
    ),
    Method(tsbd, "zeroes what unlearning moves, fine-tunes with small gradients", TRAINING, "Lin et al., NeurIPS 2024"),
)
"""Name on the command line -> `(network, data, key, **options) -> (network, report)`."""

__all__ = [
    "DEFENSES",
    "NO_DATA",
    "Data",
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
    "shapley",
    "tsbd",
]
