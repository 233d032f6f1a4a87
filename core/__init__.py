"""The code at the bottom: it imports no model, no variant and no script."""
from pathlib import Path

ROOT = Path(__file__).parents[1] # of the repository
