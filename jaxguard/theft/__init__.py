"""Test bed of fingerprints: how copies of a model are made, and independent ones.

A theft is a pure function of the owner's network, the thief's data and a key; `THEFTS` is the table of them. Copies are
networks, so thefts chain:

    owner, _ = independent(model, owners_data, key)
    copy, report = THEFTS["fine-pruning"](owner, thiefs_data, key, share=0.3)
    twice, _ = THEFTS["quantisation"](copy, bits=4)
    student, _ = THEFTS["distillation"](owner, thiefs_data, key, student=models.build("vgg13", ...))
    innocent, _ = independent(model, thiefs_data, another_key)

Defaults are those of SAC's code for CIFAR-10 where it has any.
"""

from jaxguard.errors import TheftError
from jaxguard.theft.adversarial_extraction import adversarial_extraction
from jaxguard.theft.equivalence import permutation, rescaling
from jaxguard.theft.extraction import distillation, label_extraction
from jaxguard.theft.fine_pruning import fine_pruning
from jaxguard.theft.fine_tuning import fine_tuning, head_reset, transfer
from jaxguard.theft.independents import halves, independent, independents, owners_share
from jaxguard.theft.protocol import Blueprint, Theft, TheftReport
from jaxguard.theft.quantisation import quantisation
from jaxguard.theft.sgd import SGD

THEFTS: dict[str, Theft] = {
    "fine-tune-all": Theft(fine_tuning, "weights"),
    "fine-tune-last": Theft(fine_tuning, "weights", defaults={"layers": 1}),
    "head-reset": Theft(head_reset, "weights"),
    "fine-pruning": Theft(fine_pruning, "weights"),
    "quantisation": Theft(quantisation, "weights", needs=()),
    "permutation": Theft(permutation, "weights", needs=("key",)),
    "rescaling": Theft(rescaling, "weights", needs=("key",)),
    "transfer": Theft(transfer, "weights"),
    "label-extraction": Theft(label_extraction, "queries"),
    "distillation": Theft(distillation, "queries"),
    "adversarial-extraction": Theft(adversarial_extraction, "queries"),
}
"""Name -> row, called `(owner, data, key, **options) -> (copy, report)`."""

__all__ = [
    "SGD",
    "THEFTS",
    "Blueprint",
    "Theft",
    "TheftError",
    "TheftReport",
    "halves",
    "independent",
    "independents",
    "owners_share",
]
