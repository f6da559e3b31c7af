"""The one exception for input that cannot be used, and the check that raises it."""


class InputError(ValueError):
    """Input that cannot be used; the message is one line: what, where, and what would be right."""


def require(condition: bool, message: str) -> None:
    """Raise :class:`InputError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InputError(message)
