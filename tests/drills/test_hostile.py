"""Hostile checkpoints and config files: whoever makes a state.json can seal it, so every field is checked.

    DRILL_ONLY=state:17 python -m pytest tests/drills/test_hostile.py -m drill      repeats record 17
"""
import copy
import json
import os
import random
import shutil
from collections import Counter
from itertools import islice

import pytest
from drill import begins, in_process, kind_of, outcome
from helpers import TINY, call, flags

import model
import sample
import train
from core.run.checkpoint import STATE_FILE
from core.run.files import seal, unseal

SEED, RECORDS, CONFIGS, BATCH = 20261201, 300, 300, 50
ONLY = os.environ.get('DRILL_ONLY', '').split(':')

VALUES = [None, True, False, 0, -1, 1, 2, 3, 1.5, -0.0, 1e300, 10 ** 9, 10 ** 18, 10 ** 400, -10 ** 30,
          float('nan'), float('inf'), '', 'x', 'NaN', '0', 'base', 'nope', '../../x', '/etc/passwd', 'os',
          '__import__("os").abort()', 'a' * 100_000, '\x1b[31mred', '\x9b2J', '\ud800', 'a\nb', '\x00',
          'alibi', 'alibi+rope', 'cuda:', 'cpu:', 'gpt2', [], {}, [[]], [None], {'a': 1}, [1] * 10_000,
          {str(n): n for n in range(1000)}, 'deep']
FILES = ['', 'n_layer = ', 'n_layr = 3', 'n_layer = "3"', 'n_layer = 0', 'n_layer = 10 ** 5000',
         'n_layer = 2.5', 'n_layer = None', 'n_layer = True', 'dropout = float("nan")',
         'learning_rate = -1', 'learning_rate = 1j', 'import os', 'from os import *', 'x = 1',
         'raise ValueError("\\x1b[31mred\\nline")', 'raise SystemExit', 'exit()', 'exit(0)',
         'import sys; sys.exit(3)', 'raise MemoryError', 'raise RecursionError', 'def f(): return f()\nf()',
         'assert False', '1 / 0', 'dataset = 3', 'dataset = "\\x1b[31m"', 'dataset = b"x"', 'out_dir = ""',
         'out_dir = "\\ud800"', 'variant = "\\x1b[2J"', 'variant = "base"', 'variant = "nope"',
         'variant = ["a"]', 'n_head = 5', 'block_size = 10 ** 9', 'vocab_size = 1', '_private = 1',
         'class n_layer: pass', 'def n_layer(): pass', 'n_layer: int = 2', 'n_layer = n_head = 2',
         'for n_layer in 1, 2: pass', 'n_layer, n_head = 2, 2', 'del n_layer', 'n_layer = 2;',
         '\tn_layer = 2', 'n_layer = 2 # \xe9', 'globals()["\\x1b[31m"] = 1', 'globals()["n layer"] = 1',
         'globals()[3] = 4', 'await x', 'yield 1', 'return', 'print("x")', 'import nope', 'open("nope")',
         '"' * 3, '(' * 300, '[' * 3000 + ']' * 3000, 'x = ' + '-' * 5000 + '1', 'n_layer = 2\r\n',
         '# -*- coding: nope -*-', '# -*- coding: latin-1 -*-\nn_layer = 2 # \xe9', 'batch_size = 2 ** 62',
         'max_iters = type("I", (int,), dict(__repr__=lambda s: "\\x1b[31m"))(3)',
         'seed = type("S", (), dict(__repr__=lambda s: 1 / 0))()',
         'raise type("E", (Exception,), dict(__str__=lambda s: 1 / 0))', 'device = "cpu:"',
         'device = "cuda:" + "9" * 5000', 'dtype = "float32\\n"', 'compile = 0', 'compile = "False"']


@pytest.fixture(scope='session')
def finished(data, tmp_path_factory):
    """A finished run with one checkpoint."""
    out = tmp_path_factory.mktemp('hostile') / 'run'
    options = TINY | dict(dataset=data, out_dir=out, max_iters=4, eval_interval=4, always_save_checkpoint=False,
                          save_best=False)
    assert call(train.main, **options).code == 0
    return out


def deep(levels=200):
    """Returns lists in lists, not so deep that JSON cannot hold them."""
    x = []
    for _ in range(levels):
        x = [x]
    return x


def places(x, path=()):
    """Yields the path of every value in nested dicts and lists."""
    for key, value in x.items() if isinstance(x, dict) else enumerate(x):
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def hostile_state(state, n):
    """Returns the n-th hostile copy of a state, and what was done to it."""
    dice, state, done = random.Random(f'{SEED} state {n}'), copy.deepcopy(state), []
    # half of the places among the few that matter most
    for _ in range(dice.choice([1, 1, 1, 2, 5])):
        top = dice.choice([*state, 'options', 'model_args', 'model_args', 'files', 'tokenizer', 'scaler'])
        nested = isinstance(state.get(top), (dict, list))
        inside = [(top, *path) for path in places(state[top])] if nested else []
        *way, last = dice.choice(inside) if inside and dice.random() < 0.8 else (top,)
        box = state
        for key in way:
            box = box[key]
        if dice.random() < 0.2:
            done.append(f'without {(*way, last)}')
            box.pop(last, None) if isinstance(box, dict) else box.pop(last)
        elif isinstance(box, dict) and dice.random() < 0.1:
            name = dice.choice(['\x1b[31m', 'a' * 1000, '', '__class__', 'self', 'n_layers'])
            box[name] = dice.choice(VALUES)
            done.append(f'{(*way, name)} added')
        else:
            value = dice.choice(VALUES)
            box[last] = deep() if value == 'deep' else value
            done.append(f'{(*way, last)} = {str(value)[:40]!r}')
    return state, '; '.join(done)


def play_states(numbers, out, folder):
    """Resumes from each hostile record, and samples from it; returns exit codes and faults."""
    import torch
    torch.set_num_threads(1)
    real, codes, faults = model.GPT.stream, Counter(), []
    train.train_loop = begins
    model.GPT.stream = lambda *args, **more: islice(real(*args, **more), 3)
    run = folder / 'run'
    shutil.copytree(out, run)
    path = run / 'ckpt/step_00000004' / STATE_FILE
    honest = unseal(path.read_bytes())
    os.chdir(folder)
    for n in numbers:
        state, done = hostile_state(honest, n)
        path.write_bytes(seal(state))
        for script, args in ((train, ['--init_from=resume']), (sample, ['--num_samples=1', '--device=cpu'])):
            found = outcome(script.main, [f'{script.__name__}.py', f'--out_dir={run}', *args], limit=10)
            codes[found.code if isinstance(found.code, int) else 'fault'] += 1
            # 0: what was changed is not used, or may be so; 2: what it names is not here
            fault = found.fault({0, 2, 4}) or f'slow: {found.seconds:.1f} s' * (found.seconds > 5)
            if fault:
                faults.append((f'state:{n}', script.__name__, done, fault))
    shutil.rmtree(run)
    return codes, faults


def drill_batches(play, what, numbers, record_property, *args):
    """Plays all numbers in processes of their own; asserts that nothing was wrong."""
    if ONLY != ['']:
        numbers = [int(ONLY[1])] if ONLY[0] == what else []
    codes, faults = Counter(), []
    for first in range(0, len(numbers), BATCH):
        some, wrong = in_process(play, numbers[first:first + BATCH], *args)
        codes, faults = codes + some, faults + wrong
    ends = ', '.join(f'{code}: {count}' for code, count in sorted(codes.items(), key=str))
    record_property(f'hostile {what}', f'{len(numbers)}, exit codes {ends}; faults {len(faults)}')
    kinds = Counter(kind_of(fault[-1]) for fault in faults)
    shown = [(count, kind, *next(f for f in faults if kind_of(f[-1]) == kind)) for kind, count in kinds.items()]
    shown = faults if len(numbers) == 1 else shown
    assert not faults, f'{len(faults)} faults:\n' + '\n'.join(map(str, shown))


def test_hostile_states(finished, tmp_path, record_property):
    drill_batches(play_states, 'state', range(RECORDS), record_property, finished, tmp_path)


def config_text(n):
    """Returns the n-th config file, as bytes."""
    dice = random.Random(f'{SEED} config {n}')
    if n < len(FILES):
        lines = [FILES[n]]
    elif dice.random() < 0.1:
        return bytes(dice.randrange(256) for _ in range(dice.randrange(1, 200)))
    else:
        lines = [dice.choice(FILES) for _ in range(dice.randrange(2, 5))]
    raw = '\n'.join(lines).encode('utf-8', 'surrogatepass')
    return dice.choice([b'', b'', b'', b'\xef\xbb\xbf', b'\x00']) + raw if n >= len(FILES) else raw


def play_configs(numbers, data, folder):
    import torch
    torch.set_num_threads(1)
    codes, faults = Counter(), []
    train.train_loop = begins
    for n in numbers:
        dice = random.Random(f'{SEED} name {n}')
        names = f'c{n}.py', f'c{n}', f'é {n}.py', f'\x1b[31m{n}.py', f'a=b{n}.py', f'\udcff{n}.py'
        path = folder / dice.choice(names)
        path.write_bytes(config_text(n))
        # small enough for whatever the file leaves as it is
        small = flags(device='cpu', compile=False, n_embd=24, batch_size=1, block_size=16)
        argv = ['train.py', str(path), *flags(dataset=data, out_dir=folder / f'run{n}'), *small]
        found = outcome(train.main, argv, limit=10)
        codes[found.code if isinstance(found.code, int) else 'fault'] += 1
        if fault := found.fault():
            faults.append((f'config:{n}', config_text(n)[:80], fault))
    return codes, faults


def test_config_files(data, tmp_path, record_property):
    drill_batches(play_configs, 'config', range(CONFIGS), record_property, data, tmp_path)


def test_a_state_too_deep_for_json(finished, tmp_path):
    shutil.copytree(finished, tmp_path / 'run')
    path = tmp_path / 'run/ckpt/step_00000004' / STATE_FILE
    escapes = json.dumps({'a': '\x1b' * 9}).encode()
    for raw in b'[' * 100_000, b'{"a":' * 100_000, escapes, bytes(100), b' ' * (17 << 20):
        path.write_bytes(raw)
        for script, argv in ((train, ['--init_from=resume']), (sample, [])):
            found = outcome(script.main, [f'{script.__name__}.py', f'--out_dir={tmp_path / "run"}', *argv])
            assert not found.fault({4}) and found.seconds < 2, found
