"""A link of the chain that did not hold."""


class ChainError(Exception):
    """The message says which, and ends with what was printed there."""
