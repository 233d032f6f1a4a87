"""How a check says that something does not hold."""


class Failed(AssertionError):
    """A property that must hold for every variant does not."""


class Leak(Failed):
    """A position sees a later one, or a row another."""


def require(condition, text, failure=Failed):
    """Raises failure(text) unless the condition holds."""
    if not condition:
        raise failure(text)
