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
from jaxguard.theft.independents import halves, independent
from jaxguard.theft.protocol import Blueprint, Copy, Theft, TheftReport
from jaxguard.theft.quantisation import quantisation
from jaxguard.theft.sgd import SGD

THEFTS: dict[str, Theft] = {
    "fine-tune-all": Theft(fine_tuning, "fine-tuning", "weights", True),
    "fine-tune-last": Theft(fine_tuning, "fine-tuning", "weights", True, defaults={"layers": 1}),
    "head-reset": Theft(head_reset, "head", "weights", True),
    "fine-pruning": Theft(fine_pruning, "pruning", "weights", True),
    "quantisation": Theft(quantisation, "quantisation", "weights", True, needs=()),
    "permutation": Theft(permutation, "equivalence", "weights", True, keeps_function=True, needs=("key",)),
    "rescaling": Theft(rescaling, "equivalence", "weights", True, keeps_function=True, needs=("key",)),
    "transfer": Theft(transfer, "transfer", "weights", False),
    "label-extraction": Theft(label_extraction, "extraction", "queries", False),
    "distillation": Theft(distillation, "extraction", "queries", False),
    "adversarial-extraction": Theft(adversarial_extraction, "extraction", "queries", False),
}
"""Name -> row, called `(owner, data, key, **options) -> (copy, report)`."""

__all__ = [
    "SGD",
    "THEFTS",
    "Blueprint",
    "Copy",
    "Theft",
    "TheftError",
    "TheftReport",
    "halves",
    "independent",
]
