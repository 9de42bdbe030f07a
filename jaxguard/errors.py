"""Every error a user can meet, each raised once at the public boundary with four parts: see `JaxguardError`."""


class JaxguardError(Exception):
    """Base of all jaxguard errors.

    The message says what was expected, what was given, where (file, leaf path, argument) and what to do about it.

    Attributes:
        kind: one word for machines, the same for all errors of a class.
    """

    kind = "failed"


class CheckpointError(JaxguardError):
    """A checkpoint that cannot be opened, or whose leaves do not fit the architecture."""

    kind = "unreadable"


class UnsupportedError(CheckpointError):
    """A valid file that uses a feature or format which jaxguard does not read; the message names it."""

    kind = "unsupported"


class DamagedError(CheckpointError):
    """A file that breaks a promise of its format, such as one cut short; the message names the promise."""

    kind = "damaged"


class HostileError(CheckpointError):
    """A file that tries a trick on its reader, such as a bomb or a path out of its folder; the message names it."""

    kind = "hostile"


class NonFiniteError(CheckpointError):
    """A checkpoint whose weights hold NaN or infinity."""

    kind = "not finite"


class DeviceMemoryError(JaxguardError):
    """A program that needs more memory than a device has."""

    kind = "out of memory"


class InternalError(JaxguardError):
    """jaxguard contradicts itself, as where an account of leaves does not add up to the file: a bug to be reported."""

    kind = "internal"


class ArchitectureError(JaxguardError):
    """An architecture name or option that jaxguard does not know."""


class DataError(JaxguardError):
    """A dataset that is missing, malformed, or does not fit the model."""


class GraphError(JaxguardError):
    """A model whose channel graph cannot be derived, or in which nothing can be scored."""

    kind = "unscorable"


class UnscorableError(GraphError):
    """A model in which no channel has a score; a scan must not pass over it silently."""


class OptionError(JaxguardError):
    """A method or an option that does not exist, or a value of the wrong type or out of range."""


class DefenseError(JaxguardError):
    """A defense that lacks what it needs, such as clean images or a training-mode model."""


class EndpointError(JaxguardError):
    """A model behind an endpoint that cannot be reached, or whose answers are not one row of scores per image."""


class TheftError(JaxguardError):
    """A theft lacks what it needs, such as images or a channel graph, or failed."""


class FingerprintError(JaxguardError):
    """A fingerprint cannot be made or compared: data, graph or outputs are of the wrong kind."""


class FleetError(JaxguardError):
    """A fleet scan that cannot start or go on: a shard, a folder of results, a cluster."""


class VerdictError(JaxguardError):
    """A finding that a pipeline does not accept, see `jaxguard.types.Report.raise_for`."""
