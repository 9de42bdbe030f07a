"""The channel graph of any JAX model, derived from its jaxpr.

`tracing` lays a model flat into a `program`; `primitives` is the table of what every analysis has to know about a
primitive; `ties` finds which axes are the same channels, `groups` gathers those that are permuted together, `dataflow`
finds the layers that make channels; `channel_graph` puts it together and runs the model gated or cut.
"""

from jaxguard.graph.channel_graph import ChannelGraph, Gates, State, channel_graph
from jaxguard.graph.channels import Affine, Producer
from jaxguard.graph.coalitions import Coalitions
from jaxguard.graph.groups import Group, Member
from jaxguard.graph.views import LeafView

__all__ = [
    "Affine",
    "ChannelGraph",
    "Coalitions",
    "Gates",
    "Group",
    "LeafView",
    "Member",
    "Producer",
    "State",
    "channel_graph",
]
