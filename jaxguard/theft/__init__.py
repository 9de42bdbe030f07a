"""How copies of a model are made, and independent ones: what a fingerprint is judged by.

A theft is a pure function of the owner's network, the thief's data and a key; `THEFTS` is the table of them. Copies are
networks, so thefts chain:

    owner, _ = independent(model, owners_data, key)
    copy, report = THEFTS["fine-pruning"](owner, thiefs_data, key, share=0.3)
    twice, _ = THEFTS["quantisation"](copy, None, key, bits=4)
    student, _ = THEFTS["distillation"](owner, thiefs_data, key, student=models.build("vgg13", ...))
    innocent, _ = independent(model, thiefs_data, another_key)

Defaults are those of SAC's code for CIFAR-10 where it has any.
"""

from jaxguard.theft.adversarial_extraction import adversarial_extraction
from jaxguard.theft.extraction import distillation, label_extraction
from jaxguard.theft.fine_pruning import Snapshot, fine_pruning, snapshots
from jaxguard.theft.fine_tuning import fine_tuning
from jaxguard.theft.head import head_reset
from jaxguard.theft.homogeneity import Symmetry, symmetries
from jaxguard.theft.independents import halves, independent
from jaxguard.theft.permutation import permutation
from jaxguard.theft.protocol import Blueprint, Network, Row, Theft, TheftError, TheftReport
from jaxguard.theft.quantisation import quantisation
from jaxguard.theft.rescaling import rescaling
from jaxguard.theft.transfer import transfer, with_new_head

THEFTS: dict[str, Row] = {
    "fine-tune-all": Row(fine_tuning, "fine-tuning", "weights", True),
    "fine-tune-last": Row(fine_tuning, "fine-tuning", "weights", True, options={"layers": 1}),
    "head-reset": Row(head_reset, "head", "weights", True),
    "fine-pruning": Row(fine_pruning, "pruning", "weights", True),
    "quantisation": Row(quantisation, "quantisation", "weights", True, needs_data=False),
    "permutation": Row(permutation, "equivalence", "weights", True, keeps_function=True, needs_data=False),
    "rescaling": Row(rescaling, "equivalence", "weights", True, keeps_function=True, needs_data=False),
    "transfer": Row(transfer, "transfer", "weights", False),
    "label-extraction": Row(label_extraction, "extraction", "queries", False),
    "distillation": Row(distillation, "extraction", "queries", False),
    "adversarial-extraction": Row(adversarial_extraction, "extraction", "queries", False),
}
"""Name -> row, called `(owner, data, key, **options) -> (copy, report)`."""

__all__ = [
    "THEFTS",
    "Blueprint",
    "Network",
    "Row",
    "Snapshot",
    "Symmetry",
    "Theft",
    "TheftError",
    "TheftReport",
    "adversarial_extraction",
    "distillation",
    "fine_pruning",
    "fine_tuning",
    "halves",
    "head_reset",
    "independent",
    "label_extraction",
    "permutation",
    "quantisation",
    "rescaling",
    "snapshots",
    "symmetries",
    "transfer",
    "with_new_head",
]
