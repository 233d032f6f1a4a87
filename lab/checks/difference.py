"""Does an arm compute anything that the baseline does not? A verdict on one that does not is about nothing."""
import dataclasses

import torch

from lab.checks.models import tokens
from lab.checks.move import move_weights
from lab.checks.settings import candidate_values
from lab.checks.state import same_circumstances
from model import GPTConfig, Step, build, load_classes

# relative to the largest number: what another order of sums explains in float64
ROUNDING = 1e-9
# passes in training in which noise that is seldom drawn, in one of five, must show
DRAWS = 64
