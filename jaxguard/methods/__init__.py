"""A published method as one table row, whose options are read off its signature and checked in one place."""

from jaxguard.methods.annotations import Count, Momentum, Named, NonNegative, Positive, Share, Steps
from jaxguard.methods.method import Method, Option, check, checked, find, options_of, table

__all__ = [
    "Count",
    "Method",
    "Momentum",
    "Named",
    "NonNegative",
    "Option",
    "Positive",
    "Share",
    "Steps",
    "check",
    "checked",
    "find",
    "options_of",
    "table",
]
