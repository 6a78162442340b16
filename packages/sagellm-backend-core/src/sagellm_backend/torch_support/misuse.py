"""Misuse that torch would accept in silence."""


class MisuseError(ValueError):
    """Arguments do not fit the operation.

    Raised without a message where the operation table can say what is wrong, from shapes and dtypes
    alone; never seen by a caller, who gets :class:`InvalidArgumentError`.
    """
