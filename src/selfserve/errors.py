"""The one exception for input that cannot be used."""


class InputError(ValueError):
    """Input that cannot be used; the message is one line: what, where, and what would be right."""
