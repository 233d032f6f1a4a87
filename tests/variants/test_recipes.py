"""With its defaults a variant does something in every recipe of config/: a verdict on nothing would come out equal."""
import pytest
from helpers import ROOT

from configurator import config_file, options_of
from core.assemble import variant_names
from core.errors import Stop
from lab.checks import why_idle
from model import load_classes


def recipe(path):
    """Returns (variant, model options) of a recipe, with narrow heads, and six layers at most."""
    given = {g.name: g.value for g in config_file(str(path))}
    variant = given.get('variant', 'base')
    sizes = dict(block_size=1024, n_layer=12, n_head=12, dropout=0.0)
    # of GPT-2 XL
    if given.get('init_from') == 'gpt2-xl':
        sizes['n_head'] = 25
    options = {name: given[name] for name in options_of(load_classes(variant).GPTConfig) if name in given}
    sizes |= options
    # deeper models repeat what six layers do
    sizes['n_layer'] = min(sizes['n_layer'], 6)
    return variant, sizes | dict(vocab_size=65, n_embd=16 * sizes['n_head'])


# one of each kind; what eval_*.py evaluate is trained already
RECIPES = {}
for path in sorted(ROOT.glob('config/[!e]*.py')):
    RECIPES.setdefault(str(recipe(path)), path)
CASES = [pytest.param(path, name, id=f'{path.stem}-{name}', marks=[] if 'cpu' in path.stem else pytest.mark.slow)
         for path in RECIPES.values() for name in variant_names()]


@pytest.mark.parametrize('path, name', CASES)
def test_the_default_does_something(path, name):
    baseline, c = recipe(path)
    if name in baseline.split('+'):
        return
    variant = name if baseline == 'base' else f'{baseline}+{name}'
    try:
        load_classes(variant)
    except Stop:
        # the two do not go together, and say so
        return
    assert why_idle(variant, baseline, c, c, max_iters=1000) is None


def test_what_acts_between_rows_does_something():
    _, c = recipe(ROOT / 'config/ab_shakespeare_cpu.py')
    assert why_idle('noise_mixup', 'base', c | dict(mix='batch'), c, max_iters=1000) is None
