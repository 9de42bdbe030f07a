"""Neuron weight change: unlearning moves the weights of backdoor channels the most.

TSBD unlearns the defender's clean images, OTBR labelled noise; both rank channels by the L1 norm of the change of their
kernels.

    unlearned = unlearn_noise(network, key)
    scores = neuron_weight_change(network.graph, network.variables, unlearned.variables)
    masks = highest(scores, 0.1)
"""

from jaxguard.weight_change.ranking import Layers, Ranking, rank
from jaxguard.weight_change.scores import highest, neuron_weight_change, weight_change
from jaxguard.weight_change.unlearning import Ascent, UniformNoise, Unlearned, shortfall, unlearn, unlearn_noise

__all__ = [
    "Ascent",
    "Layers",
    "Ranking",
    "UniformNoise",
    "Unlearned",
    "highest",
    "neuron_weight_change",
    "rank",
    "shortfall",
    "unlearn",
    "unlearn_noise",
    "weight_change",
]
