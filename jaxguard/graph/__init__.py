"""The channel graph of any JAX model, derived from its jaxpr.

`program` traces a model into a flat list of equations; `axes` and `rules` find which axes are the same channels;
`channels` finds who makes them; `channel_graph` puts it together and runs the model gated or cut.
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
