"""What a user may type, what it turns into, and what he is told when it is wrong.

Each message is compared as a whole: the one line is what the user has.
"""
import random
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from helpers import call
from hypothesis import example, given, settings, strategies as st

import configurator
import train
from configurator import Count, FilePath, NonNegative, Positive, Rate, Share, Whole, configure
from core.errors import BAD_INPUT, Stop
from model import load_classes

ROOT = Path(__file__).parents[2]


@dataclass
class Options:      # a stand-in with the names in config/; the integration test runs train.py itself
    out_dir: str = 'out'                # where the run is kept
    variant: str = 'base'               # a file of variants/, or two: a+b
    init_from: str = 'scratch'
    dataset: str = 'openwebtext'
    eval_interval: Count = 2000
    log_interval: Count = 1
    eval_iters: Whole = 0               # batches an evaluation; 0: the whole split
    eval_only: bool = False
    always_save_checkpoint: bool = True
    wandb_log: bool = False
    wandb_project: str = 'owt'
    wandb_run_name: str = 'gpt2'
    gradient_accumulation_steps: Count = 40
    batch_size: Count = 12
    learning_rate: Positive = 6e-4
    max_iters: Count = 600000
    weight_decay: NonNegative = 0.1
    beta2: Rate = 0.95
    share: Share = 1.0
    grad_clip: NonNegative | None = 1.0
    top_k: Count | None = None
    decay_lr: bool = True
    warmup_iters: Whole = 2000
    lr_decay_iters: Count = 600000
    min_lr: NonNegative = 6e-5
    offset: int = 0
    scale: float = 1.0
    note: str | None = None
    start: str = '\n'
    device: str = 'auto'
    compile: Literal['auto', True, False] = 'auto'


@dataclass
class GPTConfig:
    block_size: Count = 1024            # context, in tokens
    n_layer: Count = 12                 # blocks
    n_head: Count = 12
    n_embd: Count = 768
    dropout: Rate = 0.0                 # of activations

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f'n_head={self.n_head}\nmust divide n_embd={self.n_embd}')


@dataclass
class Windowed(GPTConfig):
    dropout: Rate = 0.1                 # of windows too
    window_init: Positive = 32.0        # attention span at initialization, in tokens


def load(variant):
    if variant not in ('base', 'windowed'):
        raise Stop(f'variant={variant}: no such variant')
    return SimpleNamespace(GPTConfig=Windowed if variant == 'windowed' else GPTConfig)


def read(*argv, **more):
    return configure(Options, more.get('load', load), argv, say=more.get('say', lambda line: None))


def refused(*argv, **more):
    with pytest.raises(Stop) as stop:
        read(*argv, **more)
    assert stop.value.code == 2
    assert len(str(stop.value).splitlines()) == 1
    return str(stop.value)


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text, name='mine.py'):
        Path(name).write_text(text)
        return name
    return write


@pytest.mark.parametrize('arg, value', [
    ('max_iters=1000', 1000), ('max_iters=1e3', 1000), ('max_iters=8.0', 8), ('offset=-3', -3), ('eval_iters=0', 0),
    ('offset=9007199254740993', 2 ** 53 + 1),       # a float would lose the last digit
    ('learning_rate=1', 1.0), ('learning_rate=6e-4', 6e-4), ('beta2=0', 0.0), ('share=1', 1.0),
    ('scale=inf', float('inf')),
    ('wandb_log=True', True), ('wandb_log=true', True), ('wandb_log=False', False), ('wandb_log=false', False),
    ('compile=auto', 'auto'), ('compile=True', True), ('compile=false', False),
    ('top_k=None', None), ('top_k=5', 5), ('grad_clip=None', None), ('grad_clip=0', 0.0), ('note=None', None),
    ('note=5', '5'),
    ('start=a=b', 'a=b'), ('start=12', '12'), ('start=True', 'True'), ('start=None', 'None'), ('start=', ''),
    ('start=é\n', 'é\n'),
])
def test_text_becomes_the_type_of_the_option(arg, value):
    got = getattr(read('--' + arg).options, arg.partition('=')[0])
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize('arg, takes', [
    ('max_iters=8.5', 'int in [1, inf)'), ('max_iters=0', 'int in [1, inf)'), ('max_iters=inf', 'int in [1, inf)'),
    ('max_iters=True', 'int in [1, inf)'), ('max_iters=1e30', 'int in [1, inf)'), ('max_iters=', 'int in [1, inf)'),
    ('eval_iters=-1', 'int in [0, inf)'), ('offset=x', 'int'), ('scale=nan', 'float'), ('scale=None', 'float'),
    ('learning_rate=0', 'float in (0, inf)'), ('learning_rate=nan', 'float in (0, inf)'),
    ('learning_rate=inf', 'float in (0, inf)'), ('min_lr=-1e-9', 'float in [0, inf)'), ('beta2=1', 'float in [0, 1)'),
    ('share=1.01', 'float in [0, 1]'), ('wandb_log=1', 'True | False'), ('wandb_log=yes', 'True | False'),
    ('compile=1', 'auto | True | False'), ('compile=Auto', 'auto | True | False'),
    ('top_k=0', 'int in [1, inf) | None'),
    ('top_k=none', 'int in [1, inf) | None'), ('grad_clip=nan', 'float in [0, inf) | None'),
])
def test_text_out_of_type_or_range_is_refused_with_what_is_allowed(arg, takes):
    assert refused('--' + arg) == f"--{arg}: {arg.partition('=')[0]} takes {takes}"


@pytest.mark.parametrize('line, value', [
    ('max_iters = 1e3', 1000), ('max_iters = 5 * 8', 40), ('learning_rate = 1', 1.0), ('wandb_log = True', True),
    ('compile = False', False), ("compile = 'auto'", 'auto'), ('top_k = None', None), ('top_k = 5', 5),
    ("start = '12'", '12'),
])
def test_value_in_a_file_becomes_the_type_of_the_option(write, line, value):
    got = getattr(read(write(line)).options, line.split()[0])
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize('line, takes', [
    ('compile = 1', 'auto | True | False'), ('wandb_log = 0', 'True | False'), ('max_iters = True', 'int in [1, inf)'),
    ('learning_rate = True', 'float in (0, inf)'), ("max_iters = '2'", 'int in [1, inf)'),
    ('max_iters = 8.5', 'int in [1, inf)'),
    ("learning_rate = float('nan')", 'float in (0, inf)'), ('start = 12', 'text'), ('start = None', 'text'),
    ('wandb_log = None', 'True | False'), ('dataset = len', 'text'), ('batch_size = [8]', 'int in [1, inf)'),
])
def test_value_in_a_file_is_refused_with_file_and_line(write, line, takes):
    message = refused(write('\n# the second line is a comment\n' + line))
    name, _, value = line.partition(' = ')
    shown = {"float('nan')": 'nan', 'len': '<built-in function len>'}.get(value, value)
    assert message == f'mine.py:3: {name} = {shown}: {name} takes {takes}'


def test_a_monstrous_value_is_shown_short(write):
    assert len(refused(write('batch_size = list(range(9999))'))) < 200
    assert 'a huge int' in refused(write('batch_size = 10 ** 5000'))
    assert 'batch_size = 1 2' in refused(write('class Two:\n def __repr__(self): return "1\\n2"\nbatch_size = Two()'))


KINDS = {   # what may come out, written down a second time
    'max_iters': lambda v: type(v) is int and v >= 1,
    'eval_iters': lambda v: type(v) is int and v >= 0,
    'offset': lambda v: type(v) is int,
    'scale': lambda v: type(v) is float and v == v,
    'learning_rate': lambda v: type(v) is float and 0 < v < float('inf'),
    'beta2': lambda v: type(v) is float and 0 <= v < 1,
    'share': lambda v: type(v) is float and 0 <= v <= 1,
    'top_k': lambda v: v is None or type(v) is int and v >= 1,
    'grad_clip': lambda v: v is None or type(v) is float and 0 <= v < float('inf'),
    'wandb_log': lambda v: type(v) is bool,
    'compile': lambda v: v == 'auto' or type(v) is bool,
    'start': lambda v: type(v) is str,
    'note': lambda v: v is None or type(v) is str,
    'n_layer': lambda v: type(v) is int and v >= 1,
}
anything = (st.none() | st.booleans() | st.integers(-2 ** 64, 2 ** 64) | st.integers(-2, 3) | st.floats() | st.text()
            | st.sampled_from(['1e3', '8.0', '1e400', 'nan', '-inf', 'None', 'true', 'auto', '0x10', '1_0', ' 7 ',
                               '٣', '9' * 5000])
            | st.lists(st.integers(), max_size=2))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(KINDS)), anything, st.booleans())
@example('scale', 10 ** 400, True)
@example('offset', 10 ** 5000, True)
def test_any_value_is_accepted_in_its_type_and_range_or_refused_in_one_line(tmp_path_factory, name, value, in_a_file):
    if in_a_file:
        file = tmp_path_factory.getbasetemp() / 'any.py'
        code = '10**5000' if value == 10**5000 else f'float({str(value)!r})' if type(value) is float else repr(value)
        file.write_text(f'{name} = {code}', encoding='utf-8')
        arg = str(file)
    else:
        arg = f'--{name}={value}'
    try:
        config = read(arg)
    except Stop as stop:
        assert len(str(stop).splitlines()) == 1 and name in str(stop) and 'takes' in str(stop)
        assert not in_a_file or not KINDS[name](value) or abs(value) >= 2 ** 63
    else:
        got = config.model_args[name] if name == 'n_layer' else getattr(config.options, name)
        assert KINDS[name](got)
        assert not in_a_file or got == (float(value) if type(got) is float else value)
        assert config.origin[name] == (f'{file}:1' if in_a_file else 'command line')


def test_later_files_beat_earlier_ones_and_the_command_line_beats_both_wherever_it_stands(write):
    one = write('batch_size = 1\nmax_iters = 1\nn_layer = 1', 'one.py')
    two = write('\nbatch_size = 2\nn_layer = 2', 'two.py')
    config = read('--n_layer=3', one, two)
    assert (config.options.batch_size, config.options.max_iters, config.model_args) == (2, 1, {'n_layer': 3})
    assert [config.origin[name] for name in ('batch_size', 'max_iters', 'n_layer', 'dropout', 'out_dir')] == \
           ['two.py:2', 'one.py:2', 'command line', 'default', 'default']
    assert read(two, one).options.batch_size == 1
    assert read('--batch_size=3', '--batch_size=4').options.batch_size == 4
    # overridden, and wrong all the same
    assert 'batch_size = 0' in refused(write('batch_size = 0'), '--batch_size=3')


def test_every_override_is_said_once_with_its_origin(write):
    lines = []
    read(write("n_layer = 4\nstart = 'a'\nbatch_size = 2"), '--n_layer=6', say=lines.append)
    assert sorted(lines) == ['batch_size = 2 (mine.py:3)', 'n_layer = 6 (command line)', "start = 'a' (mine.py:2)"]


def test_the_line_is_that_of_the_last_assignment_at_the_top_level(write):
    config = read(write('batch_size = 1\nif True:\n    batch_size = 2\n'
                        'def f():\n    batch_size = 3\nfor n_layer in (1, 2): pass\n'))
    assert config.origin['batch_size'] == 'mine.py:3' and config.origin['n_layer'] == 'mine.py:6'


def test_a_nanogpt_config_file_runs_unchanged(write):
    config = read(write('''
# finetune on something small
import time
from os.path import join

out_dir = 'out-shakespeare'
eval_interval = 5 # keep frequent
wandb_log = False # feel free to turn on
wandb_run_name = 'run' + str(time.time())
_half = 20
gradient_accumulation_steps = 5 * 8
init_from = 'gpt2-xl' # the largest
device = 'cpu'
compile = False

def scaled(x): return x / 10
class Helper: pass
learning_rate = 3e-4
min_lr = scaled(learning_rate)
dropout = 0 # none
'''))
    o = config.options
    assert (o.eval_interval, o.gradient_accumulation_steps, o.init_from, o.compile) == (5, 40, 'gpt2-xl', False)
    assert o.wandb_run_name.startswith('run1') and o.min_lr == pytest.approx(3e-5)
    assert config.model_args == {'dropout': 0.0} and type(config.model_args['dropout']) is float


def test_a_config_file_starts_from_nothing(write):
    write('batch_size = 2', 'one.py')
    assert 'two.py:1: NameError' in refused('one.py', write('max_iters = batch_size * 2', 'two.py'))
    assert 'NameError' in refused(write('batch_size = len(Options)'))


@pytest.mark.parametrize('text, message', [
    ('batch_size = 1\nn_head = n_hed * 2', "mine.py:2: NameError: name 'n_hed' is not defined"),
    ('batch_size = = 1', 'mine.py:1: SyntaxError: invalid syntax'),
    ('def f():\n    return 1 / 0\nbatch_size = f()', 'mine.py:2: ZeroDivisionError: division by zero'),
    ('\nimport no_such_module', "mine.py:2: ModuleNotFoundError: No module named 'no_such_module'"),
    ('raise ValueError("a\\nb")', 'mine.py:1: ValueError: a b'),
])
def test_an_error_in_a_config_file_is_one_line_with_its_place(write, text, message):
    assert refused(write(text)) == message


@pytest.mark.parametrize('text', ['exit()', 'import sys\nsys.exit(0)', 'quit(3)', 'raise BaseException'])
def test_a_config_file_that_exits_is_refused(write, text):
    """With exit code 0 nothing would have been trained."""
    assert refused(write(text)).startswith('mine.py:')


def test_a_variant_that_exits_is_refused():
    def exits(variant):
        raise SystemExit(0)
    with pytest.raises(Stop, match='variant=base: its file calls exit'):
        configure(Options, exits, [])


def test_a_path_is_not_empty_and_knows_the_home_folder(monkeypatch):
    @dataclass
    class Options:
        out_dir: FilePath = 'out'

    monkeypatch.setenv('HOME', '/home/me')
    assert configure(Options, argv=['--out_dir=~/runs'], say=lambda text: None).options.out_dir == '/home/me/runs'
    for path in '', ' ', 'a\0b':
        with pytest.raises(Stop, match='out_dir takes a path'):
            configure(Options, argv=[f'--out_dir={path}'])


def test_a_config_file_that_is_no_text_is_one_line(write):
    for content in (b'batch_size = "\xff"', b'batch\0size = 1', b'PK\3\4'):
        Path(write('')).write_bytes(content)
        assert refused('mine.py').startswith('mine.py')


def test_a_missing_config_file_suggests_one_that_is_there(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert refused('config/train_shakespear_char.py') == \
        'config/train_shakespear_char.py: no such config file; did you mean config/train_shakespeare_char.py?'
    assert refused('config').startswith('config: no such config file')         # a folder is no file


def test_an_unknown_option_is_refused_with_a_suggestion(write):
    assert refused('--n_layr=4') == '--n_layr=4: no such option; did you mean n_layer?'
    assert refused('--batch-size=4') == '--batch-size=4: no such option; did you mean batch_size?'
    assert refused(write('\nn_layr = 4')) == 'mine.py:2: n_layr = 4: no such option; did you mean n_layer?'
    assert refused(write('from string import digits')) == \
        "mine.py:1: digits = '0123456789': no such option; --help lists them"
    assert refused('--zzz=4') == '--zzz=4: no such option; --help lists them'


def test_thirty_misspelt_names_are_caught_in_files_and_on_the_command_line(write):
    draw, suggested = random.Random(1), 0
    names = [name for name in read('--n_layer=1').origin if name != 'note']     # `not` is no name
    for _ in range(30):
        name = draw.choice(names)
        at = draw.randrange(1, len(name))
        wrong = name[:at] + draw.choice(['', 'q', name[at] * 2]) + name[at + 1:]
        assert f'mine.py:1: {wrong} = 1: no such option' in refused(write(f'{wrong} = 1'))
        message = refused(f'--{wrong}=1')
        assert f'--{wrong}=1: no such option' in message
        suggested += f'did you mean {name}?' in message
    assert suggested >= 28


@pytest.mark.parametrize('argv, message', [
    (['--n_layer', '4'], '--n_layer 4: type --n_layer=4'),
    (['--wandb_log'], '--wandb_log has no value: type --wandb_log=VALUE; '
                      'for a switch that is --wandb_log=True or --wandb_log=False'),
    (['--wandb_log', '--n_layer=2'], '--wandb_log has no value: type --wandb_log=VALUE; '
                                     'for a switch that is --wandb_log=True or --wandb_log=False'),
    (['-x'], '-x: options have two dashes, a name and a value: --name=value; --help lists them'),
    (['-n_layer=4'], '-n_layer=4: options have two dashes, a name and a value: --name=value; --help lists them'),
    (['--'], '--: options have two dashes, a name and a value: --name=value; --help lists them'),
    (['--=4'], '--=4: options have two dashes, a name and a value: --name=value; --help lists them'),
    (['n_layer=4'], 'n_layer=4: type --n_layer=4'),
])
def test_a_slip_of_syntax_is_told_what_to_type(argv, message):
    assert refused(*argv) == message


def test_a_switch_before_a_config_file_does_not_swallow_it(write):
    assert refused('--wandb_log', write('')).startswith('--wandb_log has no value')


def test_a_path_may_hold_blanks_and_equals_signs(write):
    assert read(write('batch_size = 3', 'lr=3 e.py')).origin['batch_size'] == 'lr=3 e.py:1'


def test_the_variant_decides_which_model_options_there_are(write):
    file = write("window_init = 5\nvariant = 'windowed'")
    config = read(file)
    assert config.model_args == {'window_init': 5.0} and config.GPTConfig is Windowed
    assert config.origin['window_init'] == 'mine.py:1' and config.origin['variant'] == 'mine.py:2'
    assert 'no such option' in refused(file, '--variant=base')
    assert read('--window_init=3', '--variant=windowed').model_args == {'window_init': 3.0}
    assert refused('--variant=nope') == 'variant=nope: no such variant'
    assert 'variant takes text' in refused(write('variant = 5'))


def test_an_option_of_another_variant_names_that_variant(tmp_path, monkeypatch):
    (tmp_path / 'variants').mkdir()
    (tmp_path / 'variants/windowed.py').write_text('class GPTConfig:\n    window_init: float = 3\n')
    monkeypatch.setattr(configurator, 'HERE', tmp_path)
    assert refused('--window_init=3') == '--window_init=3: no such option; it belongs to --variant=windowed'
    assert refused('--window_ini=3') == '--window_ini=3: no such option; --help lists them'


def test_only_what_was_given_is_in_model_args():
    assert read().model_args == {} and read('--n_layer=12').model_args == {'n_layer': 12}


def test_a_script_without_a_model_has_no_model_options():
    config = read('--batch_size=2', load=None)
    assert config.GPTConfig is None and config.model_args == {} and 'n_layer' not in config.origin
    assert 'no such option' in refused('--n_layer=2', load=None)


def test_a_script_without_a_variant_option_gets_the_base_model():
    @dataclass
    class Plain:
        seed: Whole = 1

    config = configure(Plain, load, ['--n_layer=2', '--seed=3'], say=lambda line: None)
    assert config.options == Plain(3) and config.GPTConfig is GPTConfig
    with pytest.raises(Stop, match='no such option'):
        configure(Plain, load, ['--variant=windowed'])


def test_one_name_cannot_be_an_option_of_both_script_and_model():
    @dataclass
    class Both:
        n_layer: Count = 1

    with pytest.raises(Stop, match='^variant=base: n_layer is an option of the script already'):
        configure(Both, load, [])


def test_arguments_default_to_those_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['train.py', '--batch_size=7'])
    assert configure(Options).options.batch_size == 7
    assert capsys.readouterr().out == 'batch_size = 7 (command line)\n'


def test_rules_between_fields_end_in_one_line():
    with pytest.raises(Stop, match=r'^n_head=5 must divide n_embd=768$'):
        configurator.construct(GPTConfig, {'n_head': 5})
    assert configurator.construct(Windowed, {'n_head': 6}) == Windowed(n_head=6)


def test_values_from_python_are_checked_too():
    built = configurator.construct_checked(Windowed, {'window_init': 3, 'n_layer': 2.0})
    assert built == Windowed(window_init=3.0, n_layer=2)
    assert type(built.window_init) is float and type(built.n_layer) is int
    for values, message in [({'n_layer': 0}, 'n_layer = 0: n_layer takes int in [1, inf)'),
                            ({'n_layer': '2'}, "n_layer = '2': n_layer takes int in [1, inf)"),
                            ({'n_layr': 2}, 'n_layr = 2: no such option; did you mean n_layer?'),
                            ({'n_head': 5}, 'n_head=5 must divide n_embd=768')]:
        with pytest.raises(Stop) as stop:
            configurator.construct_checked(GPTConfig, values)
        assert str(stop.value) == message


def test_meanings_are_trailing_comments_the_nearest_class_first():
    # as core/assemble.py makes classes: without source code of their own
    together = type('GPTConfig', (Windowed,), {})
    meanings = {name: meaning for name, (meaning, _) in configurator.comments_of(together).items() if meaning}
    assert meanings == {'block_size': 'context, in tokens', 'n_layer': 'blocks', 'dropout': 'of windows too',
                        'window_init': 'attention span at initialization, in tokens'}


def test_a_type_that_is_no_option_type_is_the_authors_error():
    @dataclass
    class Wrong:
        sizes: list = None

    with pytest.raises(TypeError, match='list'):
        configure(Wrong, None, [])


def test_help_shows_every_option_with_default_allowed_values_and_meaning(monkeypatch, capsys):
    def shown(*argv):
        with pytest.raises(SystemExit) as end:
            read(*argv)
        assert end.value.code == 0
        return capsys.readouterr().out

    monkeypatch.setattr(sys, 'argv', ['/somewhere/train.py'])
    text = shown('--help')
    lines = [' '.join(line.split()) for line in text.splitlines()]
    assert lines[:2] == ['What a user may type, what it turns into, and what he is told when it is wrong.', '']
    assert 'Each message' not in text
    assert 'usage: python train.py [config/x.py ...] [--key=value ...]' in lines
    assert '--eval_iters=0 int in [0, inf) batches an evaluation; 0: the whole split' in lines
    assert '--compile=auto auto | True | False' in lines and r"--start='\n' text" in lines
    assert lines.index('options of train.py') < lines.index('--out_dir=out text where the run is kept') \
        < lines.index('options of the model') < lines.index('--n_layer=12 int in [1, inf) blocks')
    assert 'window_init' not in text and 'the variant' not in text
    columns = {line.index('int in') for line in text.splitlines() if 'int in' in line}
    assert len(columns) == 1 and max(map(len, text.splitlines())) <= 110
    assert all(f'--{name}=' in text for name in read().origin)

    # the variants that there are, and the groups of a script that has some, device options last
    assert ' soft_window, ' in text[text.index('variants, of which'):] and '_moments' not in text
    with pytest.raises(SystemExit):
        configure(train.Options, load_classes, ['--help'])
    titles = [line for line in capsys.readouterr().out.splitlines() if line.startswith('options')]
    assert titles == [f'options of train.py: {group}' for group in
                      ('I/O', 'wandb', 'data', 'model', 'AdamW', 'system', 'device')] + ['options of the model']

    text = shown('-h', '--variant=windowed')
    assert text.index('options of the model') < text.index('--dropout=0.1') \
        < text.index('options of the variant windowed') < text.index('--window_init=32.0')


@pytest.mark.parametrize('file', sorted(f.name for f in ROOT.glob('config/*.py') if not f.name.startswith('ab_')))
def test_every_config_file_sets_known_options_to_allowed_values(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = configure(train.Options, load_classes, [f'config/{file}'], say=lambda line: None)
    configurator.construct(load_classes(config.options.variant).GPTConfig, config.model_args)
    assert Path(f'config/{file}').read_text(encoding='utf-8').startswith('"""')
    assert all(origin == 'default' or origin.startswith(f'config/{file}:') for origin in config.origin.values())
    assert len(set(config.origin.values())) > 4         # each on a line of its own


def test_a_signal_while_a_config_file_runs_is_no_error_of_the_file(write):
    # as in a process of its own
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    file = write('import signal\nsignal.raise_signal(signal.SIGTERM)')
    assert call(lambda: configure(Options, argv=[str(file)])).line(143) == 'stopped by SIGTERM'
    signal.signal(signal.SIGTERM, before)
    assert 'SystemExit' in call(lambda: configure(Options, argv=[str(write('exit()'))])).line(BAD_INPUT)


def test_whatever_a_config_file_holds_is_one_line(write):
    broken = 'type("X", (), dict(__repr__=lambda self: 1 / 0))()'
    assert 'a X that cannot be printed' in refused(write(f'batch_size = {broken}'))
    silent = 'raise type("E", (Exception,), dict(__str__=lambda self: 1 / 0))'
    assert 'E: a E that cannot be printed' in refused(write(silent))
    assert 'x = 1: no such option' in refused(write('globals()[3] = 4\nx = 1'))
