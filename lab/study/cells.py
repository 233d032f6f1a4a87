"""Cells of a study over texts and options: --over='dataset=a,b,c; learning_rate=x0.5,x1,x2; n_embd=192,384'.

A cell is a combination of levels, one of each factor, and trains all arms. A level is a value, which replaces that
of the recipe in all arms, or a factor, xF, on the arm's own value. What belongs together moves together:
learning_rate takes min_lr with it, max_iters takes lr_decay_iters and warmup_iters, in proportion, and n_embd
takes n_head where that is a whole number, so that heads keep their channels.
"""
import dataclasses
import math
import re
import zlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import train
from configurator import COMMAND_LINE, construct, did_you_mean, options_of, parse_option
from core.data.dataset import Dataset
from core.errors import Stop
from lab import blocked
from lab.study.arm import NOT_COMPUTED, Arm, check_measured_alike
from model import load_classes

# options that no factor can be: they say how runs are measured, or where they run, not what is trained
FIXED = *NOT_COMPUTED, 'eval_interval', 'eval_iters', 'curve_iters', 'eval_train'
# options that are scaled with another one
FOLLOWERS = dict(learning_rate=('min_lr',), max_iters=('lr_decay_iters', 'warmup_iters'))
SIZES = 'n_layer', 'n_embd'
SHORT = dict(learning_rate='lr', max_iters='iters')
# texts have seeds of their own, so that no draw of initial weights is in all of them
TEXT_SEEDS = 1_000_000


@dataclass
class StudyCell:
    """A cell of a study, with all arms in it."""
    name: str                   # 'python, lr x0.5, n_embd 384'
    text: str                   # the data set's short name
    levels: dict                # {factor: level as typed}, without dataset
    arms: dict[str, Arm]        # {arm's name: the arm in this cell, whose own name has the cell's in it}

    def seeds(self, o):
        """Returns the cell's seeds; o: ab.py's Options, with a number of seeds. Cells of a text share them."""
        first = o.first_seed + zlib.crc32(self.text.encode()) % TEXT_SEEDS
        return list(range(first, first + o.seeds))

    @property
    def shape(self):
        """What checks and prices depend on, except the size of the vocabulary."""
        return [(arm.options.variant, arm.options.batch_size, arm.options.max_iters,
                 arm.model_args | dict(vocab_size=0)) for arm in self.arms.values()]

    def as_dict(self):
        """Returns what study.json keeps of the cell, beside its arms."""
        return dict(name=self.name, text=self.text, levels=self.levels,
                    arms={name: arm.name for name, arm in self.arms.items()})

    @classmethod
    def from_dict(cls, d, arms):
        """Returns the cell that as_dict() described; arms: the study's by their names. KeyError if one is missing."""
        return cls(d['name'], d['text'], d['levels'], {name: arms[full] for name, full in d['arms'].items()})


def first_of_each_shape(cells):
    """Returns those cells whose arms differ from all earlier cells' in more than text, rates and the like."""
    found, shapes = [], []
    for cell in cells:
        if (shape := cell.shape) not in shapes:
            found.append(cell)
            shapes.append(shape)
    return found


# -----------------------------------------------------------------------------
# from a command line

def parse_over(text):
    """Returns {factor: [level as typed]} of --over. Raises Stop for what is no list of levels."""
    factors = {}
    for part in filter(str.strip, text.split(';')):
        name, equals, rest = part.strip().removeprefix('--').partition('=')
        name, levels = name.strip(), [level.strip() for level in rest.split(',')]
        if not equals or not name:
            raise Stop(f'over: {part.strip()}: write option=level,level,...')
        if name in factors:
            raise Stop(f'over: {name} is there twice')
        if '' in levels or len(levels) < 2:
            raise Stop(f'over: {name}={rest}: takes two levels or more, with commas between them')
        if doubled := next((level for level in levels if levels.count(level) > 1), None):
            raise Stop(f'over: {name}={rest}: {doubled} is there twice')
        if len({is_scale(level) for level in levels}) > 1 and all(map(is_number, levels)):
            raise Stop(f'over: {name}={rest}: takes values, or factors such as x0.5, not both')
        factors[name] = levels
    if not factors:
        raise Stop(f'over={text}: names no factor; write option=level,level; ...')
    return factors


def is_scale(level):
    """Returns True for a factor such as x0.5."""
    return level[:1] == 'x' and is_number(level)


def is_number(level):
    """Returns True for a number above 0, or a factor."""
    try:
        return 0 < float(level.removeprefix('x')) < math.inf
    except ValueError:
        return False


def make_cells(arms, factors, count=0):
    """Returns the StudyCells of these arms, the baseline first; count: how many, 0 for all combinations.

    factors: {factor: [level as typed]}. Raises Stop, before anything is trained, for a level that an arm cannot
    have.
    """
    check_factors(arms, factors)
    base = arms[0]
    # ~ is the user's own folder
    datasets = [value_of(base, 'dataset', name) for name in factors.get('dataset', [base.options.dataset])]
    texts = dict(zip(short_names(datasets), datasets))
    others = {name: levels for name, levels in factors.items() if name != 'dataset'}
    vocabularies = vocabularies_of(datasets)
    for name, levels in others.items():
        check_levels(base, name, levels)
    cells = []
    for cell in blocked.design(list(texts), others, count or None):
        words = [f'{SHORT.get(name, name)} {level}' for name, level in cell.levels.items()]
        # a study of one text need not name it
        name = ', '.join([cell.text] * (len(texts) > 1) + words)
        levels = dict(dataset=texts[cell.text]) | cell.levels
        vocab_size = vocabularies[levels['dataset']]
        in_cell = {arm.name: arm_in_cell(arm, levels, vocab_size, name) for arm in arms}
        for arm in in_cell.values():
            check_measured_alike(arm, in_cell[base.name])
        cells.append(StudyCell(name, cell.text, cell.levels, in_cell))
    return cells


def short_names(datasets):
    """Returns the last parts of the data sets' paths, or the paths where two of those are alike."""
    names = [Path(name).name for name in datasets]
    return names if len(set(names)) == len(names) else list(datasets)


def check_factors(arms, factors):
    """Raises Stop if a factor is no option of some arm, cannot be one, or is an arm's own affair."""
    for arm in arms:
        known = known_options(arm)
        for name, levels in factors.items():
            typed = f'over: {name}={",".join(levels)}'
            if name == 'variant':
                raise Stop(f'{typed}: arms are named by --variants or --arms, and all are trained in each cell')
            if name in FIXED:
                raise Stop(f'{typed}: is no factor, as it says how runs are measured or where they run')
            if name not in known:
                raise Stop(f'{typed}: no such option of arm {arm.name}{did_you_mean(name, known)}')
            if name in arm.given and not is_scale(levels[0]):
                raise Stop(f'{typed}: arm {arm.name} has its own, {name}={arm.given[name]}; factors on it, such as '
                           'x0.5,x1, leave it that')


def vocabularies_of(datasets):
    """Returns {data set: size of its vocabulary}. Raises Stop if two of them are the same text."""
    names, sizes = {}, {}
    for name in datasets:
        # a large one takes a second to open
        text = Dataset(name, 1)
        if (earlier := names.setdefault(text.hash, name)) != name:
            raise Stop(f'over: dataset={earlier} and dataset={name}: are the same text')
        sizes[name] = text.vocab_size
    return sizes


def check_levels(base, name, levels):
    """Raises Stop if two levels of a factor are the same value, or one of a rate, length or size is not above 0."""
    values = {}
    for level in levels:
        value = value_of(base, name, level)
        if name in (*FOLLOWERS, *SIZES) and not value > 0:
            raise Stop(f'over: {name}={level}: takes values above 0, or factors such as x0.5')
        if (earlier := values.setdefault(value, level)) != level:
            raise Stop(f'over: {name}={earlier} and {name}={level}: are both {value}')


def known_options(arm):
    """Returns {name: Option} of train.py's options and the arm's model's."""
    return options_of(train.Options) | options_of(load_classes(arm.options.variant).GPTConfig)


def value_of(arm, name, level):
    """Returns the value of an option at a level. Raises Stop if the arm cannot have it."""
    option = known_options(arm)[name]
    own = getattr(arm.options, name, None) if name in options_of(train.Options) else arm.model_args[name]
    try:
        if type(own) not in (int, float) or not re.match(r'x[\d.+-]', level):
            return parse_option(option, level, COMMAND_LINE)
        if not is_scale(level):
            raise Stop('takes a factor above 0 after the x, such as x0.5')
        value = float(level[1:]) * own
        # a length of training is rounded; a width or a number of layers must fit
        if type(own) is int and name in FOLLOWERS:
            value = max(1, round(value))
        return parse_option(option, f'{value!r}', COMMAND_LINE)
    except Stop as stop:
        of = f' of {own} in arm {arm.name}' * (level[:1] == 'x')
        raise Stop(f'over: {name}={level}{of}: {str(stop).rpartition(": ")[2]}') from None


def arm_in_cell(arm, levels, vocab_size, cell):
    """Returns the arm with these levels, {option: level as typed}. Raises Stop, which names the cell.

    vocab_size: the text's.
    """
    changes = {}
    for name, level in levels.items():
        value = changes[name] = value_of(arm, name, level)
        for follower in FOLLOWERS.get(name, ()):
            own, led = getattr(arm.options, follower), getattr(arm.options, name)
            # a follower that is a factor itself has its own level
            if follower not in levels and led:
                # x1 leaves it as it is, to the last digit
                scaled = own * (float(level[1:]) if is_scale(level) else value / led)
                changes[follower] = round(scaled) if type(own) is int else scaled
    if 'n_embd' in changes and 'n_head' not in levels:
        heads = Fraction(changes['n_embd'] * arm.model_args['n_head'], arm.model_args['n_embd'])
        if heads.denominator == 1:
            changes['n_head'] = int(heads)
    # a data set sets the vocabulary, unless the user does
    if arm.origin.get('vocab_size', 'default') == 'default':
        changes.setdefault('vocab_size', vocab_size)
    of_training = {name: value for name, value in changes.items() if name in options_of(train.Options)}
    options = dataclasses.replace(arm.options, **of_training)
    if options.min_lr > options.learning_rate and arm.options.min_lr <= arm.options.learning_rate:
        raise Stop(f'cell {cell}: arm {arm.name}: min_lr={options.min_lr:g}: is above '
                   f'learning_rate={options.learning_rate:g}')
    GPTConfig = load_classes(arm.options.variant).GPTConfig
    of_model = arm.model_args | {name: value for name, value in changes.items() if name not in of_training}
    try:
        model_args = dataclasses.asdict(construct(GPTConfig, of_model))
    except Stop as stop:
        raise Stop(f'cell {cell}: arm {arm.name}: {stop}') from None
    return dataclasses.replace(arm, name=f'{arm.name} ({cell})', options=options, model_args=model_args)


def default_seeds(cells):
    """Returns the seeds of a cell where the user gives none: 1 if cells outnumber the parameters, else 2.

    Parameters are a mean for each text, and one for each further level of each factor. Where none is left over,
    nothing but a second seed tells the noise of runs. The verdict rests on the cells of one length of training.
    """
    cells = [cell for cell in cells if cell.levels.get('max_iters') == cells[0].levels.get('max_iters')]
    texts = {cell.text for cell in cells}
    levels = {(name, level) for cell in cells for name, level in cell.levels.items()}
    return 1 if len(cells) > len(texts) + len(levels) - len(cells[0].levels) else 2
