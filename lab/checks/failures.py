"""Exceptions of checks, and require(), which raises them."""


class Failed(AssertionError):
    """A property that every variant must have does not hold."""


class Leak(Failed):
    """A position sees a later one, or a row sees another row."""


def require(condition, text, failure=Failed):
    """Raises failure(text) unless the condition holds."""
    if not condition:
        raise failure(text)
