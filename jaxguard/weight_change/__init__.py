"""Neuron weight change: unlearning moves the weights of backdoor channels the most.

TSBD unlearns the defender's clean images, OTBR labelled noise; both rank channels by the L1 norm of what that did to
their kernels.

    unlearned = unlearn_noise(train_fn, variables, image_shape, num_labels, key)
    scores = neuron_weight_change(graph, variables, unlearned.variables)
    masks = highest(scores, 0.1)
"""

from jaxguard.weight_change.scores import highest, neuron_weight_change, weight_change
from jaxguard.weight_change.unlearning import Ascent, UniformNoise, Unlearned, unlearn, unlearn_noise

__all__ = [
    "Ascent",
    "UniformNoise",
    "Unlearned",
    "highest",
    "neuron_weight_change",
    "unlearn",
    "unlearn_noise",
    "weight_change",
]
