"""Options as a tired hand, a broken script, an attacker give them: no traceback or hang, documented codes.

    DRILL_ONLY=train:417 python -m pytest tests/drills/test_options.py -m drill   repeats set 417 of train.py
"""
import os
import random
import runpy
import string
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
from drill import begins, in_process, kind_of, outcome
from helpers import ROOT, TEXT, TINY, call, flags

import ab
import bench
import model
import sample
import train
from configurator import options_of
from core.run.folder import RunFolder

SEED, SETS, BATCH = 20261201, 1000, 125
SCRIPTS = 'train', 'sample', 'bench', 'ab', 'prepare'
ONLY = os.environ.get('DRILL_ONLY', '').split(':')

NUMBERS = ['0', '1', '2', '3', '4', '7', '8', '16', '64', '-1', '-0', '1.0', '0.5', '1e2', '1e-3', '.1',
           '1_000', '1e30', '1e308', '1e400', '-1e400', 'nan', 'inf', '-inf', '9' * 30, '9' * 5000,
           '2147483648', '9223372036854775807', '9223372036854775808', '1000000000000', '0x10', '1,5', '٣',
           '１']
WORDS = ['', ' ', 'True', 'False', 'true', 'None', 'none', 'auto', 'all', 'a=b', '=', '--', '-', '[]', '{}',
         '()', '"', "'", '\\', '%s', '{0}', '$HOME', '~', '~nobody/x', '.', '..', '../x', '/', '/dev/null',
         '/proc/self/mem', 'con', 'a/b/c', 'a' * 300, 'a' * 5000, 'é', '漢字', '\U0001f600', '\u202e',
         '\udcff', '\x1b[31mred', '\x1b]0;t\x07', '\x9b2J', 'a\nb', 'a\rb', '\t', '\x7f', '\x00',
         'base', 'alibi', 'soft_window', 'alibi+rope', 'base+alibi', 'alibi+alibi', '+', 'alibi+', 'nope',
         'surprise', 'mod', 'gqa', '_hidden', 'model', 'os', 'a,b', ',', 'cpu', 'cpu:', 'cpu:0', 'cuda',
         'cuda:', 'cuda:0', 'cuda:99999999999', 'cuda:x', 'mps', 'meta', 'xla', 'float32', 'bfloat16',
         'float16', 'float64', 'resume', 'scratch', 'gpt2', 'gpt2-xl', 'sdpa', 'math', 'kernel', 'flex',
         'leaks', 'params', 'flops', 'time', '5,10', '10m', '0s', '90s', '1e9h', 'best', 'latest', 'step_4',
         '4', '99', 'adamw', 'muon']


@dataclass
class Ground:
    """Gives the files that option sets name; all paths are absolute."""
    folder: Path
    data: Path
    run: Path

    @property
    def paths(self):
        names = ('missing', 'empty', 'text.txt', 'binary', 'folder', 'esc\x1b[31m', 'latin.txt', 'bom.txt', 'one.txt',
                 'bad.csv')
        mine = [self.folder / name for name in names]
        return list(map(str, [*mine, self.data, self.run, self.run / 'config.json']))


@pytest.fixture(scope='session')
def ground(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('ground')
    ground = Ground(folder, data, folder / 'run')
    assert call(train.main, **TINY | dict(dataset=data, out_dir=ground.run, max_iters=4)).code == 0
    (folder / 'folder').mkdir()
    contents = {'empty': b'', 'text.txt': TEXT.read_bytes()[:3000], 'binary': bytes(range(256)) * 4,
                'esc\x1b[31m': b'to be\n', 'latin.txt': 'é'.encode('latin-1'), 'one.txt': b'x',
                'bom.txt': b'\xef\xbb\xbfto be or\n', 'bad.csv': b'arm;seed;loss\nbase;1;1,5\nb;1;\x1b[31m\n'}
    for name, raw in contents.items():
        (folder / name).write_bytes(raw)
    (folder / 'c.py').write_text('max_iters = 3\nn_layer = 1\n')
    return ground


def value_for(option, dice, ground):
    """Returns a value as text: often one that the option may take, else anything."""
    if option is not None and dice.random() < 0.65:
        if ' | ' in option.allowed and option.allowed != 'True | False':
            return dice.choice(option.allowed.split(' | '))
        if option.allowed == 'True | False':
            return dice.choice(['True', 'False'])
        if option.allowed.startswith(('int', 'float')):
            return dice.choice(NUMBERS[:16])
        if isinstance(option.default, str):
            return dice.choice([option.default, *ground.paths[-3:]])
    pool = dice.choice([NUMBERS, WORDS, WORDS, ground.paths])
    value = dice.choice(pool)
    if dice.random() < 0.1:
        letters = string.printable + 'é\x1b\udcfe'
        value = ''.join(dice.choice(letters) for _ in range(dice.randrange(1, 12)))
    return value


def misspelt(name, dice):
    i = dice.randrange(len(name))
    another = dice.choice(string.ascii_lowercase)
    return dice.choice([name[:i] + name[i + 1:], name[:i] + another + name[i:], name.upper(), name.replace('_', '-'),
                        name + '\x1b[2J', name + ' '])


def argument(name, value, dice):
    """Returns the words of one argument, most of them --name=value."""
    form = dice.random()
    if form < 0.9:
        return [f'--{name}={value}']
    return dice.choice([[f'--{name}', value], [f'-{name}={value}'], [f'{name}={value}'], [f'--{name}'], [value],
                        [f'--{name}={value}', f'--{name}={value}'], ['--'], ['-h'], ['--help']])


# the sets begin as small as possible, so that what is accepted is soon done
START = {
    'train': lambda g: {**{k: str(v) for k, v in TINY.items()}, 'max_iters': '3', 'dataset': str(g.data)},
    'sample': lambda g: dict(out_dir=str(g.run), num_samples='2', max_new_tokens='4', device='cpu'),
    'bench': lambda g: dict(n_layer='1', n_head='2', n_embd='16', block_size='16', vocab_size='52', batch_size='2',
                            rounds='1', seconds='0.0001', decode_tokens='4', device='cpu', compile='False'),
    'ab': lambda g: {**{k: str(v) for k, v in TINY.items()}, 'dataset': str(g.data), 'variants': 'alibi',
                     'seeds': '2', 'jobs': '1'},
}
MODES = ['report', 'from_csv', 'ledger', 'store', 'arms', 'looks', 'lr_sweep', 'null', 'match']


def known_options(script):
    scripts = dict(train=train, sample=sample, bench=bench, ab=ab)
    known = options_of(scripts[script].Options)
    if script in ('train', 'ab'):
        known |= options_of(train.Options) | options_of(model.GPTConfig)
    return known | (options_of(bench.GPTConfig) if script == 'bench' else {})


def option_set(script, n, ground, scratch):
    """Returns argv of a script's n-th option set."""
    dice = random.Random(f'{SEED} {script} {n}')
    if script == 'prepare':
        words = [dice.choice(ground.paths * 8 + WORDS) for _ in range(dice.choice([0, 1, 1, 1, 2, 3]))]
        words = [word for word in words if '\0' not in word and word not in ('/dev/null', '/proc/self/mem', '/')]
        if dice.random() < 0.8:
            forms = ['--out={}'] * 4 + ['--out=', '--out={}/a/b', '--uot={}', '-o', '--out']
            out = scratch / dice.choice(['set', 'é', 'x\x1b[31m', 'n' * 300])
            words.append(dice.choice(forms).replace('{}', str(out)))
        else:
            words.append(f'--out={ground.folder / "text.txt"}')
        if dice.random() < 0.5:
            words.append(f"--tokenizer={dice.choice(['bytes', 'bytes', 'char', '', 'bpe'])}")
        return ['prepare.py', *words]
    known, args = known_options(script), dict(START[script](ground))
    if script == 'train':
        args['out_dir'] = str(dice.choice([scratch / 'run', ground.run]))
    # compiling is work
    names = [name for name in known if (script, name) != ('bench', 'compile')]
    chosen = [dice.choice(names) for _ in range(dice.randrange(1, 5))]
    if script == 'ab' and dice.random() < 0.3:
        chosen.append(dice.choice(MODES))
    for name in chosen:
        args[name] = value_for(known[name], dice, ground)
    if dice.random() < 0.1:
        args[misspelt(dice.choice(names), dice)] = value_for(None, dice, ground)
    if dice.random() < 0.1:
        args.pop(dice.choice(list(args)))
    words = []
    for name, value in args.items():
        words += argument(name, value, dice) if name in chosen else [f'--{name}={value}']
    if dice.random() < 0.1:
        words.insert(0, dice.choice([str(ground.folder / 'c.py'), *ground.paths]))
    if script == 'ab' and dice.random() < 0.15:
        words.insert(0, 'gate')
    # the kernel passes no NUL to a program
    return [f'{script}.py', *(word for word in words if '\0' not in word)]


def stop_before_work(script):
    """Patches this process so that a script stops where its work would begin."""
    import torch
    torch.set_num_threads(1)
    if script == 'train':
        train.train_loop = begins
    elif script == 'sample':
        real = model.GPT.stream
        model.GPT.stream = lambda *args, **more: islice(real(*args, **more), 3)
    elif script == 'bench':
        bench.interleave = bench.check = begins
    elif script == 'ab':
        ab.prepare, ab.write_page = begins, lambda report, folder: None
    else:
        # runs as a file, the way it is used
        return lambda: runpy.run_path(str(ROOT / 'data/text/prepare.py'))['main']()
    return {'train': train, 'sample': sample, 'bench': bench, 'ab': ab}[script].main


def play(script, sets, ground, folder):
    """Returns ({exit code: how often}, [what is wrong with which set]) of these option sets."""
    main, codes, faults = stop_before_work(script), Counter(), []
    for n in sets:
        scratch = folder / str(n)
        scratch.mkdir()
        os.chdir(scratch)
        argv = option_set(script, n, ground, scratch)
        found = outcome(main, argv, limit=15)
        codes[found.code if isinstance(found.code, int) else 'fault'] += 1
        if fault := found.fault():
            faults.append((f'{script}:{n}', [word[:80] for word in argv], fault))
    return codes, faults


@pytest.mark.parametrize('script', SCRIPTS)
def test_options(ground, tmp_path, record_property, script):
    sets = [int(ONLY[1])] if ONLY[0] == script else range(SETS) if ONLY == [''] else []
    codes, faults = Counter(), []
    for first in range(0, len(sets), BATCH):
        some, wrong = in_process(play, script, sets[first:first + BATCH], ground, tmp_path)
        codes, faults = codes + some, faults + wrong
    ends = ', '.join(f'{code}: {count}' for code, count in sorted(codes.items(), key=str))
    record_property(f'option sets of {script}', f'{len(sets)}, exit codes {ends}; faults {len(faults)}')
    kinds = Counter(kind_of(fault) for _, _, fault in faults)
    shown = [(count, kind, *next(f for f in faults if kind_of(f[-1]) == kind)) for kind, count in kinds.items()]
    assert not faults, f'{len(faults)} faults:\n' + '\n'.join(map(str, faults if len(sets) == 1 else shown))
    assert (RunFolder(ground.run).load()[0]['step']) == 4, 'an option set has damaged the run'


@pytest.mark.parametrize('script', SCRIPTS[:-1])
def test_the_ground_is_sound(ground, tmp_path, script):
    """Without an oddity every script goes to work, so that what ends the sets is in them."""
    assert in_process(one_plain, script, ground, tmp_path) == 0


def one_plain(script, ground, scratch):
    main = stop_before_work(script)
    os.chdir(scratch)
    return outcome(main, [f'{script}.py', *flags(**START[script](ground))]).code
