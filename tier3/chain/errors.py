"""What can be wrong with a link of the chain."""


class ChainError(Exception):
    """The message says which, and ends with what was printed there."""


class NotYet(Exception):
    """Something is not as it should be, and may still become so. The message says what it is like now."""
