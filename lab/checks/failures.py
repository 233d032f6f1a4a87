"""Exceptions of checks, require(), which raises them, and where in an author's file an error arose."""
import linecache
import re
import sys
import traceback
from pathlib import Path


class Failed(AssertionError):
    """A property that every variant must have does not hold."""


class Leak(Failed):
    """A position sees a later one, or a row sees another row."""


def require(condition, text, failure=Failed):
    """Raises failure(text) unless the condition holds."""
    if not condition:
        raise failure(text)


def line_of_variant(error):
    """Returns 'mine.py:12: x = y.item(): ', the innermost line of a variant that led to an error, or ''."""
    files = {getattr(module, '__file__', None) for name, module in sys.modules.items() if name.startswith('variants.')}
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    # what Dynamo cannot trace has not run yet: its message has the lines
    places += re.findall(r'File "(.+?)", line (\d+)', str(error))
    found = [(path, int(line)) for path, line in places if path in files]
    if not found:
        return ''
    path, line = found[-1]
    code = linecache.getline(path, line).strip().rstrip(':')
    return f'{Path(path).name}:{line}: {code}: '
