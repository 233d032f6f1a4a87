"""Training as its users meet it: the commands, the effects of a kill, a typo and a NaN, and the numbers."""
import gc
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    ENV,
    ROOT,
    SIGNALS,
    TEXT,
    TINY,
    call,
    files,
    flags,
    hashes,
    last_iter,
    log,
    losses,
    nothing,
    overflow,
    rank,
    same_run,
    shakespeare,
    shell,
    slow_saves,
    start,
    stuck,
    wait_for,
)
from safetensors.torch import load_file, save_file

import sample
import train
from configurator import configure
from core.assemble import variant_names
from core.data.dataset import Dataset
from core.data.prepare import prepare_chars
from core.device.flops import flops_per_token
from core.device.machine import machine
from core.errors import BAD_INPUT, BUSY, DIVERGED, NO_CHECKPOINT, OUT_OF_MEMORY, Stop
from core.rng import key
from core.run import progress
from core.run.checkpoint import MODEL_FILE as MODEL, OPTIM_FILE as OPTIM, load_model_tensors, model_tensors, step_of
from core.run.files import seal, sha256, unseal
from core.run.folder import RunFolder
from core.training import evaluation
from core.training.processes import torchrun_ranks
from core.training.signals import Signals
from core.training.train_step import TrainStep, no_garbage_collection
from model import GPT, MLP, Step, build, load_classes

posix = pytest.mark.skipif(os.name == 'nt', reason='needs POSIX signals and a fork server')


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    return shakespeare(tmp_path_factory.mktemp('data'))


@pytest.fixture
def go(data, tmp_path):
    """go('run', n_layer=3) trains the tiny model in tmp_path/run.

    Options that are not given are those of TINY.
    """
    def train_here(out='run', **options):
        return call(train.main, **TINY | dict(dataset=data, out_dir=tmp_path / out) | options)
    return train_here


@pytest.fixture
def resume(tmp_path):
    """resume('run') resumes as a user would, naming nothing but the folder."""
    return lambda out='run', **options: call(train.main, init_from='resume', out_dir=tmp_path / out, **options)


@pytest.fixture
def spawn(data, tmp_path):
    """spawn('run', hook, n_layer=3) does the same in a process that is killed when the test ends."""
    children = []

    def begin(out, hook, *args, **options):
        args = [tmp_path / 'output', hook, *args]
        children.append(start(*args, **TINY | dict(dataset=data, out_dir=tmp_path / out) | options))
        return children[-1]
    yield begin
    for child in children:
        child.kill()
        child.join()


def weights(out, step, name=MODEL):
    return load_file(out / f'ckpt/step_{step:08d}' / name)


def distance(a, b):
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


# -- the commands as users type them

def test_the_commands_of_the_readme(tmp_path):
    (tmp_path / 'config').symlink_to(ROOT / 'config')       # the out-folders go where one stands
    small = flags(compile=False, max_iters=3, device='cpu', n_layer=1, n_head=2, n_embd=16, block_size=32, eval_iters=1)
    done = shell(ROOT / 'train.py', 'config/train_shakespeare_char.py', '--variant=surprise', *small, cwd=tmp_path)
    assert (done.code, done.err) == (0, '')
    assert 'python sample.py --out_dir=out-surprise' in done.out.splitlines()[-1]
    assert [f.name for f in tmp_path.iterdir() if f.name != 'config'] == ['out-surprise']
    done = shell(ROOT / 'sample.py', '--out_dir=out-surprise', '--num_samples=2', cwd=tmp_path)
    assert (done.code, len(done.err.splitlines())) == (0, 2) # its options
    samples = done.out.split('\n---------------\n')[:-1]    # the start and 500 tokens
    assert [len(text) for text in samples] == [501] * 2
    assert set(''.join(samples)) <= set(TEXT.read_text(encoding='utf-8'))


FILE_BOTH, FILE_VARIANT = 'out_dir = "mine"\nvariant = "surprise"\n', 'variant = "surprise"\n'


@pytest.mark.parametrize('file, args, out_dir', [
    ('', [], 'out'),
    ('', ['config/train_shakespeare_char.py'], 'out-shakespeare-char'),
    ('', ['--variant=surprise'], 'out-surprise'),
    ('', ['--variant=base'], 'out-base'),
    ('', ['--variant=surprise+soft_window'], 'out-surprise+soft_window'),
    ('', ['config/train_shakespeare_char.py', '--variant=surprise'], 'out-surprise'),
    ('', ['config/train_shakespeare_char.py', '--variant=surprise', '--out_dir=x'], 'x'),
    ('', ['--out_dir=out', '--variant=surprise'], 'out'),
    (FILE_VARIANT, [], 'out-surprise'),
    (FILE_VARIANT, ['config/train_shakespeare_char.py'], 'out-surprise'),
    (FILE_BOTH, [], 'mine'),
    (FILE_BOTH, ['--variant=soft_window'], 'out-soft_window'),
    (FILE_BOTH, ['--out_dir=x'], 'x')])
def test_out_dir_rule(tmp_path, monkeypatch, file, args, out_dir):
    monkeypatch.chdir(ROOT)
    (tmp_path / 'mine.py').write_text(file)
    config = configure(train.Options, load_classes, [str(tmp_path / 'mine.py'), *args], say=lambda text: None)
    assert train.out_dir_of(config.options, config.origin) == out_dir


# -- killed and resumed

# what a resume could get wrong
HARD = dict(variant='surprise+soft_window', dropout=0.1, gradient_accumulation_steps=2)


@pytest.fixture(scope='session')
def whole(data, tmp_path_factory):
    """An uninterrupted run of HARD, 12 iterations."""
    out = tmp_path_factory.mktemp('whole')
    assert call(train.main, **TINY | dict(dataset=data, out_dir=out) | HARD).code == 0
    return out


@posix
def test_killed_in_the_middle_of_saves(spawn, go, tmp_path):
    options = HARD | dict(max_iters=24, checkpoint_minutes=0)      # a checkpoint at every iteration
    out, dice, inside, kills = tmp_path / 'killed', random.Random(1), 0, 0
    while inside < 3:
        child = spawn('killed', slow_saves, *(['--init_from=resume'] if kills else []), **options)
        target = last_iter(out) + dice.randint(2, 4)
        wait_for(lambda target=target: last_iter(out) >= target, child.is_alive)
        saving = out / f'ckpt/.tmp-{child.pid}'
        wait_for(saving.exists, child.is_alive)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, (tmp_path / 'output').read_text()
        inside, kills = inside + saving.exists(), kills + 1
        # no more is lost than was asked for
        assert step_of(RunFolder(out).checkpoints()[0]) >= last_iter(out) - 1
    child = spawn('killed', nothing, '--init_from=resume', **options)
    child.join()
    assert child.exitcode == 0, (tmp_path / 'output').read_text()
    assert go('whole', **options).code == 0
    same_run(out, tmp_path / 'whole', 24)
    assert sorted(losses(out)) == list(range(24))
    assert not list((out / 'ckpt').glob('.tmp-*'))


def test_the_home_folder(go, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert go(out_dir='~/runs/a', max_iters=1).code == 0
    assert json.loads((tmp_path / 'runs/a/config.json').read_text())['options']['out_dir'] == str(tmp_path / 'runs/a')


def test_settings_of_evaluation_and_log_do_not_move_training(go, tmp_path):
    options = HARD | dict(max_iters=20)
    go('a', **options, eval_interval=20)
    go('b', **options, eval_interval=3, eval_iters=2, log_interval=5, always_save_checkpoint=False,
       checkpoint_minutes=0)
    few, all = losses(tmp_path / 'b'), losses(tmp_path / 'a')
    assert sorted(few) == [0, 5, 10, 15] and few == {it: all[it] for it in few}
    assert hashes(tmp_path / 'a', 20) == hashes(tmp_path / 'b', 20)


@pytest.mark.parametrize('number, it', [*((number, 5) for number in SIGNALS), (signal.SIGTERM, 8)],
                         ids=[*(f'{number.name}, between' for number in SIGNALS), 'SIGTERM, at an evaluation'])
def test_a_signal_stops_at_the_next_iteration(go, resume, tmp_path, whole, monkeypatch, number, it):
    real = TrainStep.__call__

    def update(self, i, *args):
        real(self, i, *args)
        if i == it - 1:
            signal.raise_signal(number)
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, '__call__', update)
        done = go('run', **HARD)
    run = tmp_path / 'run'
    assert done.line(128 + number) == (f'stopped by {number.name} at iteration {it}, checkpoint in {run}; '
                                       f'go on with --init_from=resume --out_dir={run}')
    assert RunFolder(run).load()[0]['step'] == it and max(losses(run)) == it - 1 and not (run / 'result.json').exists()
    assert resume().code == 0                               # with the options it had
    same_run(run, whole, 12)


@pytest.mark.parametrize('it', [0, 4, 12])
def test_a_signal_ends_an_evaluation_at_its_next_batch(go, resume, tmp_path, monkeypatch, it):
    """The checkpoint is of the same iteration, and the resumed run evaluates it again: nothing is lost."""
    monkeypatch.setattr(evaluation, 'batch_rows', lambda *args: 5)
    go('whole', **HARD)
    real, seen = evaluation.token_losses, []

    def token_losses(logits, targets):
        seen.append(len(logits))
        evaluations = 1 + it // 4
        # in the first batch of this evaluation; each of those before reads 25 windows
        if sum(seen) == 25 * (evaluations - 1) + 10:
            signal.raise_signal(signal.SIGINT)
        return real(logits, targets)
    run = tmp_path / 'run'
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, 'token_losses', token_losses)
        line = go('run', **HARD).line(130)
    assert line.startswith(f'stopped by SIGINT at iteration {it}, checkpoint in {run}; ')
    # the signal came in the second of five batches, and the third is not read
    assert sum(seen) == 25 * (it // 4) + 10
    assert RunFolder(run).load()[0]['step'] == it and max([-1, *losses(run)]) == it - 1
    assert resume().code == 0
    same_run(run, tmp_path / 'whole', 12)
    best = [RunFolder(tmp_path / name).load('best')[0] for name in ('run', 'whole')]
    assert best[0]['step'] == best[1]['step'] and best[0]['val_loss'] == best[1]['val_loss']


def test_a_signal_ends_an_iteration_between_micro_batches(go, resume, tmp_path, whole, monkeypatch):
    real, calls = GPT.objective, []

    def objective(self, *args):
        calls.append(1)
        # the first of two micro-batches of iteration 6
        if len(calls) == 13:
            signal.raise_signal(signal.SIGTERM)
        return real(self, *args)
    run = tmp_path / 'run'
    with monkeypatch.context() as patch:
        patch.setattr(GPT, 'objective', objective)
        assert go('run', **HARD).line(143).startswith(f'stopped by SIGTERM at iteration 6, checkpoint in {run}; ')
    assert len(calls) == 13 and RunFolder(run).load()[0]['step'] == 6 and max(losses(run)) == 5
    assert resume().code == 0
    same_run(run, whole, 12)


def test_a_signal_ends_an_evaluation_alone(go, tmp_path, monkeypatch):
    real = evaluation.token_losses
    monkeypatch.setattr(evaluation, 'token_losses', lambda *args: (signal.raise_signal(signal.SIGINT), real(*args))[1])
    monkeypatch.setattr(evaluation, 'batch_rows', lambda *args: 5)
    assert go('run', eval_only=True).line(130) == 'stopped by SIGINT'
    assert not (tmp_path / 'run').exists()


def train_as_a_notebook_does(data, tmp_path, **options):
    options = TINY | dict(dataset=data, out_dir=tmp_path / 'run') | options
    return train.train(configure(train.Options, load_classes, flags(**options), say=lambda line: None))


def test_a_notebook_has_its_signals_back(data, tmp_path):
    """However training ends: by itself, by Ctrl-C, by a second one, which leaves the kernel alive, or dropped."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for _ in train_as_a_notebook_does(data, tmp_path):
        assert signal.getsignal(signal.SIGINT) is not before[signal.SIGINT]
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    with pytest.raises(Stop, match='^stopped by SIGINT at iteration'):
        for n, _ in enumerate(train_as_a_notebook_does(data, tmp_path)):
            if n == 5:
                signal.raise_signal(signal.SIGINT)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    with pytest.raises(KeyboardInterrupt):
        for _ in train_as_a_notebook_does(data, tmp_path):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    run = train_as_a_notebook_does(data, tmp_path)
    next(run)
    run.close()
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_training_in_a_thread(data, tmp_path):
    """There no signal can be caught, so there are no handlers, and it trains."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: list(train_as_a_notebook_does(data, tmp_path))).result()
    assert (tmp_path / 'run/result.json').exists()


def on_a_terminal_that_closes(out):
    """Gives this process a terminal, which is gone after iteration 5; then writing there is an error."""
    terminal, ours = os.openpty()
    os.dup2(ours, 1)
    os.dup2(ours, 2)
    os.close(ours)

    def close():
        while last_iter(out) < 5:
            os.read(terminal, 1 << 16)
        os.close(terminal)
        os.kill(os.getpid(), signal.SIGHUP)
    threading.Thread(target=close, daemon=True).start()


@posix
def test_a_terminal_that_closes(spawn, tmp_path):
    out = tmp_path / 'run'
    child = spawn('run', partial(on_a_terminal_that_closes, out), max_iters=5000, eval_interval=5000)
    child.join(60)
    assert child.exitcode == 128 + signal.SIGHUP
    step = RunFolder(out).load()[0]['step']
    assert 5 < step < 5000 and last_iter(out) == step - 1


@posix
def test_nohup_is_respected():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@posix
def test_control_c_in_a_process_started_in_the_background(spawn, tmp_path):
    """A script's `train.py &` starts with SIGINT ignored, and should still stop when it comes."""
    out, ignore = tmp_path / 'run', partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    child = spawn('run', ignore, max_iters=5000, eval_interval=5000)
    wait_for(lambda: last_iter(out) >= 5, child.is_alive)
    os.kill(child.pid, signal.SIGINT)
    child.join(30)
    step = RunFolder(out).load()[0]['step']
    assert child.exitcode == 130
    assert f'\nstopped by SIGINT at iteration {step}, checkpoint in {out}' in (tmp_path / 'output').read_text()
    assert last_iter(out) in (step - 1, step) and 5 < step < 5000


def stuck_run(spawn, tmp_path):
    """Gives the folder and the process of a run that is stuck in iteration 6, with a checkpoint of 4."""
    out, child = tmp_path / 'run', spawn('run', partial(stuck, 6, tmp_path / 'stuck'))
    # a signal that comes before the iteration has begun would end the run in order
    wait_for((tmp_path / 'stuck').exists, child.is_alive)
    wait_for((out / 'ckpt/step_00000004').exists, child.is_alive)   # a thread writes it
    return out, child


@posix
def test_the_second_signal_stops_at_once(spawn, tmp_path):
    out, child = stuck_run(spawn, tmp_path)
    os.kill(child.pid, signal.SIGTERM)
    child.join(0.5)
    # it waits for the end of an iteration that never ends
    assert child.is_alive()
    os.kill(child.pid, signal.SIGTERM)
    child.join(5)
    assert child.exitcode == 128 + signal.SIGTERM
    assert RunFolder(out).load()[0]['step'] == 4


@pytest.mark.slow
@pytest.mark.parametrize('k', range(1, 11))
def test_resumed_at_every_iteration(go, resume, tmp_path, whole, k):
    go(**HARD, max_iters=k)
    done = resume(max_iters=12, eval_interval=5, log_interval=1)
    assert done.code == 0 and losses(tmp_path / 'run') == losses(whole)
    assert hashes(tmp_path / 'run', 12) == hashes(whole, 12)


def test_no_more_than_checkpoint_minutes_are_lost(go, tmp_path, monkeypatch):
    """A run that evaluates only at its ends, and whose iterations take ten seconds each."""
    clock, saved, real_call, real_save = [0.0], [], TrainStep.__call__, RunFolder.save_behind

    def call_(self, *args):
        clock[0] += 10
        real_call(self, *args)

    def save_behind(self, step, *args):
        saved.append(step)
        real_save(self, step, *args)
    monkeypatch.setattr(train, 'time', SimpleNamespace(time=lambda: clock[0]))
    monkeypatch.setattr(TrainStep, '__call__', call_)
    monkeypatch.setattr(RunFolder, 'save_behind', save_behind)
    assert go(checkpoint_minutes=0.5, eval_interval=100).code == 0
    # the first after more than 30 s
    assert saved == [0, 4, 8, 12]


def test_spaced_checkpoints_change_nothing_else(go, resume, tmp_path, whole):
    """Nor are they others in a run that is stopped, and goes on."""
    go(**HARD, max_iters=7, keep='log')
    done = resume(max_iters=12, eval_interval=5, log_interval=1)
    run = RunFolder(tmp_path / 'run')
    assert done.code == 0 and losses(run.out_dir) == losses(whole) and hashes(run.out_dir, 12) == hashes(whole, 12)
    assert [step_of(folder) for folder in reversed(run.spaced())] == [*range(9), 10, 12]
    go('other', **HARD, max_iters=8, keep='log')
    for step in run.spaced()[-9:]:
        assert (step / MODEL).read_bytes() == (tmp_path / 'other/kept' / step.name / MODEL).read_bytes()
    # the weights of a full one, with the loss that was measured of them
    for step in 10, 12:
        full, spaced = run.ckpt / f'step_{step:08d}' / MODEL, run.kept / f'step_{step:08d}' / MODEL
        assert full.read_bytes() == spaced.read_bytes()
    assert unseal((run.kept / 'step_00000010/state.json').read_bytes())['val_loss'] == run.load(10)[0]['val_loss']
    said = call(sample.main, out_dir=run.out_dir, ckpt=6, num_samples=1, max_new_tokens=3)
    assert said.code == 0
    assert 'spaced: 0 1 2' in call(sample.main, out_dir=run.out_dir, ckpt=9).line(NO_CHECKPOINT)


# -- what resume refuses, says, and keeps

def test_resume_refuses_another_model(go, resume, tmp_path):
    go(max_iters=4)
    before = files(tmp_path / 'run')
    for name, value, old in [('n_layer', 3, 2), ('block_size', 8, 16), ('bias', True, False),
                             ('variant', 'surprise', 'base')]:
        line = resume(**{name: value}).line(BAD_INPUT)
        assert line == f'{name}={value}: the run to resume has {name}={old}; start another with --init_from=scratch'
    assert files(tmp_path / 'run') == before


def test_resume_lists_what_changed(go, resume, tmp_path):
    go(max_iters=4)
    done = resume(learning_rate=5e-3, min_lr=1e-3, dropout=0.1, max_iters=8)
    changes = [line for line in done.out.splitlines() if line.endswith('from here')]
    assert sorted(changes) == ['dropout: 0.0 before, 0.1 from here', 'learning_rate: 0.01 before, 0.005 from here',
                               'max_iters: 4 before, 8 from here']
    rates = {record['iter']: record['lr'] for record in RunFolder(tmp_path / 'run').read_log() if 'lr' in record}
    assert rates[3] == train.learning_rate(3, train.Options(**OPTIONS)) != rates[4]
    assert rates[4] == train.learning_rate(4, train.Options(**OPTIONS | dict(learning_rate=5e-3)))


OPTIONS = {name: value for name, value in TINY.items() if name not in ('n_layer', 'n_head', 'n_embd', 'block_size')}


def test_resumed_with_more_iterations_equals_having_asked_for_them(go, resume, whole, tmp_path):
    go(**HARD, max_iters=8)
    done = resume(max_iters=12)
    assert done.code == 0 and json.loads((tmp_path / 'run/result.json').read_text())['iters'] == 12
    same_run(tmp_path / 'run', whole, 12)
    assert resume(max_iters=8).line(BAD_INPUT).startswith('max_iters=8: the run in')


@pytest.mark.parametrize('options, said', [
    ({}, 'attention by sdpa (no CUDA GPU)\n'), (dict(attn='math'), 'attention by math (attn=math)\n'),
    (dict(variant='head_scaling'), 'attention by math (no CUDA GPU)\n'),
    (dict(variant='sliding_window', full_every=2, window=4), 'attention by sdpa (no CUDA GPU)\n'),
    (dict(variant='sliding_window', full_every=0, window=4), '')])
def test_it_says_how_attention_is_computed(go, options, said):
    out = go(max_iters=1, **options).out
    assert said in out and ('attention by' in out) == bool(said)


def test_muon_is_resumed(go, resume, tmp_path):
    options = HARD | dict(optimizer='muon', lr_decay_iters=12)
    assert go('muon', **options, max_iters=12).code == go('parts', **options, max_iters=5).code == 0
    assert resume('parts', max_iters=12).code == 0
    same_run(tmp_path / 'parts', tmp_path / 'muon', 12)
    assert any(name.endswith('.momentum_buffer') for name in weights(tmp_path / 'muon', 12, OPTIM))


def test_a_variants_schedule_is_a_share_of_lr_decay_iters(go, resume, tmp_path):
    """In training, from where it was when a run goes on, and in sampling."""
    assert go(variant='mtp_weighted', max_iters=2, lr_decay_iters=6, log_interval=1).code == 0
    assert resume('run', max_iters=5).code == 0
    records = [record for record in RunFolder(tmp_path / 'run').read_log() if 'loss' in record]
    # the third token's weight is 0 from a third of the schedule on, the second's from two thirds
    assert [record['loss.mtp_3'] > 0 for record in records] == [True, True, False, False, False]
    assert [record['loss.mtp_2'] > 0 for record in records] == [True, True, True, True, False]
    assert sample.open_run(tmp_path / 'run', 'auto', 'cpu', 'auto', 'mtp_weighted')[0].schedule_iters == 6


def other_optimizer(make):
    """Returns configure_optimizers() of a variant whose optimizer is make(groups, lr)."""
    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type, optimizer='adamw'):
        return make([dict(params=list(self.parameters()), lr_scale=1.0)], learning_rate)
    return configure_optimizers


class Counting(torch.optim.SGD):
    """Keeps numbers, of a parameter and of a group, as some optimizers do."""

    def step(self, closure=None):
        for group in self.param_groups:
            group['weight_decay'] += 0.01
            for p in group['params']:
                if p.grad is not None:
                    self.state[p]['seen'] = self.state[p].get('seen', 0) + 1
                    p.data.mul_(1 - 1e-3 * self.state[p]['seen'])
        return super().step(closure)


OPTIMIZERS = dict(
    RMSprop=lambda groups, lr: torch.optim.RMSprop(groups, lr, momentum=0.9, centered=True),
    Adagrad=lambda groups, lr: torch.optim.Adagrad(groups, lr), SGD=lambda groups, lr: torch.optim.SGD(groups, lr),
    momentum=lambda groups, lr: torch.optim.SGD(groups, lr, momentum=0.9),
    NAdam=lambda groups, lr: torch.optim.NAdam(groups, lr),
    Adafactor=lambda groups, lr: torch.optim.Adafactor(groups, lr),
    amsgrad=lambda groups, lr: torch.optim.AdamW(groups, lr, amsgrad=True),
    Counting=lambda groups, lr: Counting(groups, lr))


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_whatever_an_optimizer_keeps_is_resumed(go, resume, tmp_path, monkeypatch, name):
    monkeypatch.setattr(GPT, 'configure_optimizers', other_optimizer(OPTIMIZERS[name]))
    options = dict(lr_decay_iters=6, eval_interval=3)
    assert go('whole', max_iters=6, **options).code == go('parts', max_iters=3, **options).code == 0
    assert resume('parts', max_iters=6).code == 0
    same_run(tmp_path / 'parts', tmp_path / 'whole', 6)
    assert len(losses(tmp_path / 'whole')) == 6


def reseal(folder, change):
    """Changes the optimizer's tensors of a checkpoint in place, with checksums that are right."""
    tensors = load_file(folder / OPTIM)
    change(tensors)
    save_file(tensors, folder / OPTIM)
    restate(folder, lambda state: None)


def restate(folder, change):
    """Changes a checkpoint's state in place, with checksums that are right."""
    state = unseal((folder / 'state.json').read_bytes())
    change(state)
    state['files'] = {name: dict(bytes=(folder / name).stat().st_size, sha256=sha256(folder / name))
                      for name in (MODEL, OPTIM)}
    (folder / 'state.json').write_bytes(seal(state))


C_FC = 'transformer.h.0.mlp.c_fc.weight'


@pytest.mark.parametrize('change, named', [
    (lambda t: t.pop(f'{C_FC}.exp_avg'), f'{C_FC}.exp_avg'),
    (lambda t: [t.pop(name) for name in list(t) if name.startswith(C_FC)], 'tensors, not'),
    (lambda t: t.clear(), '0 tensors, not'),
    (lambda t: t.update(extra=torch.zeros(3)), 'extra'),
    (lambda t: t.update({f'{C_FC}.square_avg': torch.zeros(64, 16)}), f'{C_FC}.square_avg'),
    (lambda t: t.update({f'{C_FC}.exp_avg': torch.zeros(16, 64)}), f'{C_FC}.exp_avg'),
    (lambda t: t.update({f'{C_FC}.exp_avg': t[f'{C_FC}.exp_avg'].half()}), f'{C_FC}.exp_avg')])
def test_an_optimizer_with_a_missing_or_extra_tensor_is_refused(resume, finished, tmp_path, change, named):
    shutil.copytree(finished, tmp_path / 'run')
    reseal(tmp_path / 'run/ckpt/step_00000004', change)
    before = files(tmp_path / 'run')
    line = resume(max_iters=8).line(NO_CHECKPOINT)
    assert line.startswith('the checkpoint does not fit the optimizer, AdamW: ') and named in line
    assert files(tmp_path / 'run') == before


def test_the_state_of_another_optimizer_is_refused(go, resume, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(GPT, 'configure_optimizers', other_optimizer(OPTIMIZERS['RMSprop']))
        go(max_iters=4)
    assert 'does not fit the optimizer, AdamW: ' in resume(max_iters=8).line(NO_CHECKPOINT)


# -- what is measured

def test_best_begins_anew_on_another_text(data, go, resume, tmp_path):
    """The first text is easy: with its best, no model of the second one would be the best."""
    characters = ''.join(sorted(set(TEXT.read_text(encoding='utf-8')[:4000])))
    prepare_chars(characters + 'e' * 4000, tmp_path / 'easy')
    go(dataset=tmp_path / 'easy', max_iters=8, always_save_checkpoint=False)
    done = resume(dataset=data, max_iters=16)
    assert done.code == 0 and 'the best loss begins anew' in done.out
    run = RunFolder(tmp_path / 'run')
    evals = {record['iter']: record['val_loss'] for record in run.read_log() if 'val_loss' in record}
    new = {it: loss for it, loss in evals.items() if it >= 8}
    assert min(new.values()) > min(evals.values())
    assert run.load('best')[0]['step'] == min(new, key=new.get) >= 8
    assert json.loads((run.out_dir / 'result.json').read_text())['best_val_loss'] == min(new.values())


@pytest.mark.parametrize('options', [dict(eval_iters=1), dict(curve_iters=1)])
def test_best_begins_anew_with_another_part_of_the_text(go, resume, tmp_path, options):
    go(max_iters=4)
    assert 'the best loss begins anew' in resume(max_iters=8, **options).out
    assert 'begins anew' not in resume(max_iters=12, learning_rate=1e-3, log_interval=2).out


# -- what is not finite

@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_weights_that_are_not_finite_reach_no_checkpoint(go, tmp_path, monkeypatch, dtype):
    """The first step overflows the weights; a signal or the timer comes before any loss shows it."""
    real = TrainStep.__call__

    def update(self, i, *args):
        real(self, i, *args)
        if i == 0:
            signal.raise_signal(signal.SIGTERM)
    monkeypatch.setattr(TrainStep, '__call__', update)
    line = go(dtype=dtype, learning_rate=1e38, weight_decay=0.1, warmup_iters=0, grad_clip=0.0).line(DIVERGED)
    assert line.startswith('diverged at iteration 0: its step left ')
    assert [step_of(folder) for folder in RunFolder(tmp_path / 'run').checkpoints()] == [0]


def test_moments_that_are_not_finite_reach_no_checkpoint(go, tmp_path, monkeypatch):
    real = TrainStep.__call__

    def update(self, i, *args):
        real(self, i, *args)
        if i == 3:
            self.optimizer.state[self.params[1]]['exp_avg_sq'][0] = math.inf
    monkeypatch.setattr(TrainStep, '__call__', update)
    assert 'its step left transformer.wpe.weight.exp_avg_sq not finite' in go().line(DIVERGED)
    assert step_of(RunFolder(tmp_path / 'run').checkpoints()[0]) == 0


def test_a_mask_may_be_infinite(go, monkeypatch):
    real = MLP.__init__

    def init(self, *args):
        real(self, *args)
        self.register_buffer('mask', torch.full((3, 3), -math.inf).triu(1))
    monkeypatch.setattr(MLP, '__init__', init)
    assert go(max_iters=2).code == 0


def test_no_optimizer_steps_by_a_nan(go, plant, monkeypatch):
    """RMSprop cannot skip a step by itself."""
    monkeypatch.setattr(GPT, 'configure_optimizers', other_optimizer(OPTIMIZERS['RMSprop']))
    made = plant(2, 'loss')
    go(log_interval=50, eval_interval=50).line(DIVERGED)
    assert all(p.isfinite().all() for p in made[0].model.parameters())


# -- a checkpoint from a stranger

FIELDS = ('seconds', 'best_val_loss', 'options', 'model_args', 'origin', 'tokenizer', 'data', 'scaler', 'optimizer')
HOSTILE = [(name, value) for name in FIELDS for value in ([], 'x\x1b[2J', -1, 10 ** 400, True, {'a': []})
           if (name, value) not in (('best_val_loss', -1), ('data', 'x\x1b[2J'))]
HOSTILE += [(('options', name), value) for name, value in [
    ('variant', 7), ('variant', '../../x'), ('variant', 'x.py'), ('batch_size', '4'), ('batch_size', -1),
    ('learning_rate', 'NaN'), ('init_from', 'resume'), ('init_from', None), ('compile', 2), ('dataset', '')]]
HOSTILE += [(('model_args', name), value) for name, value in [
    ('n_layer', 10 ** 9), ('n_layer', 10 ** 30), ('n_layer', 3), ('n_embd', 1 << 40), ('vocab_size', 10 ** 9),
    ('block_size', 10 ** 12), ('block_size', 17), ('block_size', 1 << 20),
    ('n_head', 0), ('n_head', '2'), ('dropout', 2), ('bias', None),
    ('unknown', 1)]]
HOSTILE += [(('tokenizer', 'vocab_size'), 10 ** 9), (('tokenizer', 'kind'), 'x'), (('tokenizer', 'chars'), 'aa'),
            (('optimizer', 'groups'), [{'params': 1}, [], 3]), (('optimizer', 'numbers'), {'a': 'b'})]


def test_a_state_that_nobody_wrote_is_refused(resume, finished, tmp_path):
    """Each field of the wrong type, out of range, or of a size that the tensors do not have; and each one missing."""
    folder = tmp_path / 'run/ckpt/step_00000004'
    shutil.copytree(finished, tmp_path / 'run')
    good = (folder / 'state.json').read_bytes()
    missing = [(name, None) for name in unseal(good) if name not in ('step', 'files', 'val_loss', 'optimizer')]
    for where, value in HOSTILE + missing:
        def change(state, where=where, value=value):
            if value is None and where in state:
                del state[where]
            elif isinstance(where, str):
                state[where] = value
            else:
                state[where[0]][where[1]] = value
        (folder / 'state.json').write_bytes(good)
        restate(folder, change)
        begun = time.monotonic()
        done = resume(max_iters=8)
        code = BAD_INPUT if value == 'x.py' else NO_CHECKPOINT
        assert (done.code, len(done.err.splitlines())) == (code, 1), (where, value, done.err)
        assert '\x1b' not in done.err + done.out and time.monotonic() - begun < 2, where
        # sampling needs no options of training
        sampled = call(sample.main, out_dir=tmp_path / 'run', num_samples=1, max_new_tokens=2, device='cpu')
        if where[0] != 'options' or where[1] == 'variant':
            assert (sampled.code, len(sampled.err.splitlines()[-1:])) == (code, 1), (where, value, sampled.err)
        assert 'Traceback' not in sampled.err


def test_a_variant_that_is_a_file_is_named_by_the_user(go, resume, tmp_path):
    """A run folder never decides what code runs."""
    mine, marker = tmp_path / 'mine.py', tmp_path / 'marker'
    mine.write_text(f'import model\nopen({str(marker)!r}, "a").close()\n\n\nclass MLP(model.MLP):\n    pass\n')
    assert go(variant=mine, max_iters=2).code == 0
    del sys.modules[f'variants.{mine}']
    marker.unlink()
    for done in resume(max_iters=4), call(sample.main, out_dir=tmp_path / 'run', device='cpu'):
        assert f'if you trust it, add --variant={mine}' in done.err.splitlines()[-1] and done.code == BAD_INPUT
    assert not marker.exists()
    assert resume(max_iters=4, variant=mine).code == 0 and marker.exists()
    assert call(sample.main, out_dir=tmp_path / 'run', variant=mine, max_new_tokens=2, device='cpu').code == 0


def test_a_checkpoint_of_nanogpt_is_named(resume, tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/ckpt.pt').write_bytes(b'PK')
    for done in resume(), call(sample.main, out_dir=tmp_path / 'run', device='cpu'):
        assert done.code == NO_CHECKPOINT and 'ckpt.pt is a checkpoint of nanoGPT' in done.err.splitlines()[-1]
    assert [f.name for f in (tmp_path / 'run').iterdir()] == ['ckpt.pt']


def test_a_resumed_run_still_says_where_its_options_came_from(go, resume, tmp_path):
    go(max_iters=4)
    resume(max_iters=8)
    config = json.loads((tmp_path / 'run/config.json').read_text())
    assert (config['options']['learning_rate'], config['origin']['learning_rate']) == (0.01, 'command line')


def test_resume_without_a_run(resume, tmp_path):
    assert not (tmp_path / 'nowhere').exists()
    assert resume('nowhere').line(NO_CHECKPOINT) == f"init_from=resume: {tmp_path / 'nowhere'} holds no run"
    # a typo makes no folder
    assert not (tmp_path / 'nowhere').exists()


def test_resume_with_every_checkpoint_damaged(go, resume, tmp_path):
    go(max_iters=8)
    for file in (tmp_path / 'run/ckpt').glob('*/' + OPTIM):
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    before = files(tmp_path / 'run')
    done = resume()
    *warnings, line = done.err.splitlines()
    assert done.code == NO_CHECKPOINT and 'no usable checkpoint' in line
    assert [OPTIM in warning for warning in warnings] == [True, True]
    assert files(tmp_path / 'run') == before


def test_resume_after_the_newest_checkpoint_was_damaged(resume, whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'run')
    (tmp_path / 'run/ckpt/step_00000012' / MODEL).write_bytes(b'')
    done = resume()
    assert done.code == 0 and 'step_00000012' in done.err
    same_run(tmp_path / 'run', whole, 12)


# made by the code of commit f1193b0, which had no core/: one run, once killed in iteration 8, once to its end
OLD_RUN = ROOT / 'tests/scripts/old_run'
ARITHMETIC = '0x1.1f113a0000000p+2'


def arithmetic():
    """Returns the bits of three steps of plain PyTorch: where they are equal, machines compute alike."""
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=g)
    x, w = draw(8, 8, 8), [torch.nn.Parameter(draw(n, 8) / 3) for n in (24, 8, 32, 32, 52)]
    adamw = torch.optim.AdamW(w, lr=1e-2, fused=True)
    for _ in range(3):
        # (8, 2, 8, 4) each
        q, k, v = (F.layer_norm(x, (8,)) @ w[0].T).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2) @ w[1].T
        y = y + F.gelu(F.layer_norm(y, (8,)) @ w[2].T) @ w[3]
        loss = F.cross_entropy((y @ w[4].T).flatten(0, 1), torch.arange(64) % 52)
        loss.backward()
        adamw.step()
        adamw.zero_grad()
    return loss.item().hex()


def test_a_run_of_older_code_is_resumed(data, resume, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(OLD_RUN / 'killed', run)
    (run / 'ckpt/.tmp-14315').mkdir()                       # what the kill left, which git does not keep
    done = call(sample.main, out_dir=run, num_samples=1, max_new_tokens=5, device='cpu')
    assert done.code == 0 and 'warning' not in done.err
    done = resume(dataset=data)
    assert (done.code, done.err) == (0, '') and f'dataset: data before, {data} from here' in done.out
    assert RunFolder(run).checkpoints()[0].name == 'step_00000012' and not (run / 'ckpt/.tmp-14315').exists()
    val_losses = lambda out: {r['iter']: r['val_loss'] for r in RunFolder(out).read_log() if 'val_loss' in r}
    if arithmetic() == ARITHMETIC:
        # evaluation adds in another order than it did, training does not
        assert losses(run) == losses(OLD_RUN / 'unbroken') and hashes(run, 12) == hashes(OLD_RUN / 'unbroken', 12)
        assert val_losses(run) == pytest.approx(val_losses(OLD_RUN / 'unbroken'), abs=1e-6)
    assert losses(run) == pytest.approx(losses(OLD_RUN / 'unbroken'), abs=1e-4)


class Death(BaseException):
    """Ends a script as SIGKILL would: nobody catches it."""


def dies_before_the_first_checkpoint(go, monkeypatch, **options):
    def die(*args):
        raise Death
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, 'save', die)
        with pytest.raises(Death):
            go(**options)


def test_a_run_that_died_before_its_first_checkpoint_starts_over(go, resume, tmp_path, whole, monkeypatch):
    dies_before_the_first_checkpoint(go, monkeypatch, **HARD)
    assert (tmp_path / 'run/config.json').exists() and not (tmp_path / 'run/ckpt').exists()
    done = resume()
    assert done.code == 0 and f"{tmp_path / 'run'} has no checkpoint yet: its run starts over" in done.out
    same_run(tmp_path / 'run', whole, 12)


@pytest.mark.parametrize('content', [b'', b'[]', b'{"options": {}}', b'\xff'])
def test_a_config_that_is_not_ours_is_refused(resume, tmp_path, content):
    config_json = tmp_path / 'run/config.json'
    config_json.parent.mkdir()
    config_json.write_bytes(content)
    assert str(config_json) in resume().line(BAD_INPUT)
    assert config_json.read_bytes() == content


@pytest.fixture
def gpt2(data, tmp_path, monkeypatch):
    """Makes a tiny GPT-2 with 52 tokens, and gives a data set of these."""
    shape = {name: TINY[name] for name in ('n_layer', 'n_head', 'n_embd')}
    monkeypatch.setitem(train.GPT2_SIZES, 'gpt2', shape)
    # TINY has seed 1337
    tiny = lambda *args, **options: build(seed=7, vocab_size=52, block_size=16, **shape)
    monkeypatch.setattr(train, 'build_gpt2', tiny)
    shutil.copytree(data, tmp_path / 'bpe')
    (tmp_path / 'bpe/meta.json').write_text('{"kind": "gpt2", "vocab_size": 52}')
    return tmp_path / 'bpe'


def test_a_fine_tuning_that_died_before_its_first_checkpoint_starts_from_gpt2_again(go, resume, gpt2, tmp_path,
                                                                                    monkeypatch):
    dies_before_the_first_checkpoint(go, monkeypatch, init_from='gpt2', dataset=gpt2)
    assert resume().code == 0
    go('whole', init_from='gpt2', dataset=gpt2)
    same_run(tmp_path / 'run', tmp_path / 'whole', 12)


def test_gpt2_starts_with_its_own_size_and_tokens(go, gpt2):
    for name, value in [('n_layer', 4), ('n_embd', 32), ('bias', False), ('vocab_size', 65), ('block_size', 2048)]:
        assert go(init_from='gpt2', dataset=gpt2, **{name: value}).line(BAD_INPUT).startswith(f'{name}={value}')
    assert 'of the kind char, those of init_from=gpt2 of the kind gpt2' in go(init_from='gpt2').line(BAD_INPUT)


def test_resume_on_other_characters_is_refused(go, resume, tmp_path):
    """The same number of characters, but other ones: every token would mean something else."""
    go(max_iters=4)
    text = TEXT.read_text(encoding='utf-8')[:4000]
    other = text.translate({ord(c): chr(ord(c) + 0x400) for c in set(text)})
    prepare_chars(other, tmp_path / 'other')
    assert 'other' in resume(dataset=tmp_path / 'other', max_iters=8).line(BAD_INPUT)


def test_buffers_are_resumed(go, resume, tmp_path, monkeypatch):
    """A buffer that counts passes in training and scales the output, as running statistics would."""
    real_init, real = MLP.__init__, MLP.forward

    def init(self, *args):
        real_init(self, *args)
        self.register_buffer('passes', torch.zeros(()))

    def forward(self, x, step):
        if self.training:
            self.passes += 1
        return real(self, x, step) * (1 + 0.1 * self.passes)
    monkeypatch.setattr(MLP, '__init__', init)
    monkeypatch.setattr(MLP, 'forward', forward)
    assert go('whole', max_iters=8).code == 0
    assert weights(tmp_path / 'whole', 8)['transformer.h.0.mlp.passes'] == 8
    assert go(max_iters=4).code == 0 and resume(max_iters=8).code == 0
    same_run(tmp_path / 'run', tmp_path / 'whole', 8)


# -- one writer, and nothing overwritten

@posix
def test_a_busy_folder(spawn, go, tmp_path):
    out, child = stuck_run(spawn, tmp_path)
    before = files(out)
    for init_from in 'scratch', 'resume':
        assert f'--out_dir={out}: process {child.pid} on ' in go(init_from=init_from).line(BUSY)
    assert files(out) == before and child.is_alive()
    child.kill()
    child.join()
    assert go(init_from='resume').code == 0                 # the dead hold no lock


def test_a_new_run_moves_the_old_one_aside(go, tmp_path):
    go(max_iters=4)
    before = files(tmp_path / 'run')
    done = go(max_iters=4, seed=2)
    assert f"the run that was in {tmp_path / 'run'} is now in {tmp_path / 'run'}/previous" in done.out
    assert files(tmp_path / 'run/previous') == before
    assert json.loads((tmp_path / 'run/result.json').read_text())['seed'] == 2


def test_a_folder_of_others_is_left_alone(go, tmp_path):
    (tmp_path / 'run/ckpt').mkdir(parents=True)
    (tmp_path / 'run/config.json').write_text('{"model": "llama"}')
    before = files(tmp_path / 'run')
    for _ in range(3):
        assert 'holds config.json, ckpt, which no run of train.py wrote' in go().line(BAD_INPUT)
    assert files(tmp_path / 'run') == before


def test_eval_only_writes_nothing(go, resume, tmp_path):
    go(max_iters=4)
    before, result = files(tmp_path / 'run'), json.loads((tmp_path / 'run/result.json').read_text())
    done = resume(eval_only=True)
    assert f"val loss {result['val_loss']:.4f}" in done.out and done.code == 0
    assert files(tmp_path / 'run') == before


# -- divergence

def test_a_learning_rate_that_is_too_high(go, resume, tmp_path):
    whole = go('whole', learning_rate=1e-2, max_iters=4)
    assert whole.code == 0
    for log_interval, eval_interval in (1, 1), (1, 100), (5, 100), (5, 3):
        done = go(learning_rate=1e30, log_interval=log_interval, eval_interval=eval_interval)
        assert done.line(DIVERGED).startswith('diverged at iteration ')
        state, tensors, _ = RunFolder(tmp_path / 'run').load('latest')
        assert all(t.isfinite().all() for t in tensors.values())
        assert state['val_loss'] is None or math.isfinite(state['val_loss']), 'a checkpoint nobody can go on from'
    assert resume(learning_rate=1e-2, eval_interval=4, log_interval=1, max_iters=4).code == 0
    assert log(tmp_path / 'run') == log(tmp_path / 'whole')


def scaled(objective, factor):
    """Returns what model.objective() returned, with its loss times a factor."""
    loss, aux_losses = objective
    return loss * factor, aux_losses


@pytest.fixture
def plant(monkeypatch):
    """plant(k, 'loss') puts a NaN into the loss of iteration k, or into a parameter's gradient; it returns the
    updates made."""
    def at(k, where):
        made = []

        class Planted(TrainStep):
            def __init__(self, *args):
                super().__init__(*args)
                made.append(self)
                if where != 'loss':
                    self.model.get_parameter(where).register_hook(lambda g: g * math.nan if self.it == k else g)
                else:
                    real = self.objective
                    self.objective = lambda x, y, it: scaled(real(x, y, it), math.nan if it == k else 1.0)

        monkeypatch.setattr(train, 'TrainStep', Planted)
        return made
    return at


@pytest.mark.parametrize('where', ['loss', 'transformer.h.1.mlp.c_fc.weight'])
@pytest.mark.parametrize('k, log_interval', [(3, 1), (3, 7), (3, 100), (0, 100)])
def test_nan_stops_before_the_step(go, tmp_path, plant, monkeypatch, where, k, log_interval):
    options = dict(eval_interval=100, gradient_accumulation_steps=2, log_interval=log_interval)
    go('clean', **options, max_iters=k)
    made = plant(k, where)
    line = go('run', **options, max_iters=10).line(DIVERGED)
    assert line.startswith(f'diverged at iteration {k}: ') and (where == 'loss' or f'the gradient of {where} ' in line)
    assert distance(model_tensors(made[0].model), weights(tmp_path / 'clean', k)) == 0
    if k:
        assert distance(made[0].state()[0], weights(tmp_path / 'clean', k, OPTIM)) == 0
    run = RunFolder(tmp_path / 'run')
    assert [f.name for f in run.checkpoints()] == ['step_00000000']
    assert all(math.isfinite(loss) for loss in losses(run.out_dir).values())
    assert not (run.out_dir / 'result.json').exists()


def test_the_blame_is_found_on_the_data_of_the_bad_iteration():
    model = small_model('base').train()
    optimizer = model.configure_optimizers(0.1, 1e-2, (0.9, 0.95), 'cpu')
    update = TrainStep(model, optimizer, machine('cpu', 'float32', False), (2, 4, 16), 1.0, 1337)

    def fatal_pair(x, y, it):
        return scaled(model.objective(x, y, it), torch.where((x == 5).any() & (y == 6).any(), math.nan, 1.0))
    update.objective = fatal_pair
    fine, fatal = torch.zeros(8, 16, dtype=torch.long), torch.full((8, 16), 5)
    for it, (x, y) in enumerate([(fine, fine), (fatal, fatal + 1), (fine, fine)]):
        update(it, x, y, 1e-2)
    assert update.metrics()[1:] == (True, 1)
    assert update.find_nonfinite(1, fatal, fatal + 1) == 'the loss'


def test_nan_stops_float16_before_the_step(go, tmp_path, plant):
    options = dict(eval_interval=100, log_interval=7, dtype='float16')
    go('clean', **options, max_iters=3)
    made = plant(3, 'loss')
    assert go('run', **options, max_iters=10).line(DIVERGED).startswith('diverged at iteration 3: ')
    assert distance(model_tensors(made[0].model), weights(tmp_path / 'clean', 3)) == 0


def test_float16_does_not_skip_forever(go, monkeypatch):
    """A gradient that is NaN whatever the scale is no overflow.

    A run that skips every step trains nothing.
    """
    real = TrainStep.__init__

    def init(self, *args):
        real(self, *args)
        self.params[1].register_hook(lambda g: g * math.nan if self.it >= 3 else g)
    monkeypatch.setattr(TrainStep, '__init__', init)
    go(dtype='float16', max_iters=100, eval_interval=100).line(DIVERGED)


# -- what cannot be

BAD = [
    (dict(n_layr=3), '--n_layr=3: no such option; did you mean n_layer?'),
    (dict(learning_rate='fast'), '--learning_rate=fast: learning_rate takes float'),
    (dict(n_head=5, n_embd=384), 'n_head=5: must divide n_embd=384'),
    (dict(out_dir=''), '--out_dir=: out_dir takes a path'),
    (dict(dataset=''), '--dataset=: dataset takes a path'),
    (dict(dataset='nope'), '--dataset=nope: neither a set'),
    (dict(block_size=400), 'val.bin has 400 tokens, block_size 400 needs at least 401'),
    (dict(variant='nope'), 'variant=nope: no file variants/nope.py'),
    (dict(variant='soft_window+soft_window'), 'variant=soft_window+soft_window: soft_window is named twice'),
    (dict(init_from='nope'), 'init_from=nope: allowed: scratch, resume, gpt2'),
    (dict(device='cuda'), 'device=cuda: not on this machine; allowed: auto, cpu'),
    (dict(device='tpu'), 'device=tpu: not on this machine; allowed: auto, cpu'),
    (dict(gradient_accumulation_steps=0), '--gradient_accumulation_steps=0: gradient_accumulation_steps takes int'),
    (dict(n_layer=-1), '--n_layer=-1: n_layer takes int in [1, 9999]'),
    (dict(learning_rate='nan'), '--learning_rate=nan: learning_rate takes float'),
    (dict(dropout=1.5), '--dropout=1.5: dropout takes float in [0, 1)'),
    (dict(vocab_size=20), 'vocab_size=20: '),
    (dict(slope_scale=3), '--slope_scale=3: no such option; it belongs to --variant=alibi'),
    (dict(attn='flex'), 'attn=flex'),
]


@pytest.fixture(scope='session')
def finished(data, tmp_path_factory):
    """A finished run that nobody may touch."""
    out = tmp_path_factory.mktemp('finished')
    assert call(train.main, **TINY | dict(dataset=data, out_dir=out, max_iters=4)).code == 0
    return out


@pytest.mark.parametrize('options, says', BAD, ids=[','.join(flags(**options)) for options, _ in BAD])
def test_bad_options_are_one_line_and_touch_nothing(data, finished, monkeypatch, options, says):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    before = files(finished)
    assert says in call(train.main, **TINY | dict(dataset=data, out_dir=finished) | options).line(BAD_INPUT)
    assert files(finished) == before


def test_bad_name_in_a_config_file(finished, tmp_path):
    before, file = files(finished), tmp_path / 'mine.py'
    file.write_text('# a comment\nn_layers = 7\n')
    line = call(train.main, file, device='cpu', out_dir=finished).line(BAD_INPUT)
    assert line == f'{file}:2: n_layers = 7: no such option; did you mean n_layer?'
    assert files(finished) == before


def test_bad_options_in_a_process_of_their_own(data, tmp_path):
    done = shell(ROOT / 'train.py', **TINY | dict(dataset=data, out_dir=tmp_path / 'run', n_head=5))
    assert done.line(BAD_INPUT) == 'n_head=5: must divide n_embd=16'
    assert 'Traceback' not in done.out + done.err


ADDRESS = dict(MASTER_ADDR='localhost', MASTER_PORT='29500')


@pytest.mark.parametrize('environ, ranks', [
    ({}, (0, 0, 1)), (dict(LOCAL_RANK='3'), (0, 0, 1)), (dict(RANK='0', WORLD_SIZE='1'), (0, 0, 1)),
    (dict(RANK='5', LOCAL_RANK='1', WORLD_SIZE='8') | ADDRESS, (5, 1, 8)), (dict(RANK='0'), None),
    (dict(WORLD_SIZE='2'), None), (dict(RANK='', WORLD_SIZE=''), None), (dict(RANK='0', WORLD_SIZE='2'), None),
    (dict(RANK='2', LOCAL_RANK='0', WORLD_SIZE='2') | ADDRESS, None), (dict(RANK='0', WORLD_SIZE='0'), None),
    (dict(RANK='-1', LOCAL_RANK='0', WORLD_SIZE='2') | ADDRESS, None), (dict(RANK='a', WORLD_SIZE='2') | ADDRESS, None),
    (dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='2', MASTER_ADDR='localhost'), None),
    (dict(RANK='1', WORLD_SIZE='2') | ADDRESS, None)])
def test_the_environment_of_torchrun(environ, ranks):
    if ranks:
        assert torchrun_ranks(environ) == ranks
    else:
        with pytest.raises(Stop, match='environment variables RANK='):
            torchrun_ranks(environ)


def test_an_odd_environment_is_one_line(go, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', 'two')
    assert "WORLD_SIZE='two'" in go().line(BAD_INPUT)


# -- the schedule and the step

def nanogpt_lr(it, learning_rate, warmup_iters, lr_decay_iters, min_lr):
    if it < warmup_iters:                                   # nanoGPT's get_lr, in its own order
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    coeff = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coeff * (learning_rate - min_lr)


@pytest.mark.parametrize('warmup, decay', [(2000, 600000), (100, 5000), (0, 10)])
def test_learning_rate_is_nanogpts(warmup, decay):
    options = dict(learning_rate=6e-4, warmup_iters=warmup, lr_decay_iters=decay, min_lr=6e-5)
    for it in 0, 1, warmup - 1, warmup, warmup + 1, (warmup + decay) // 2, decay - 1, decay, decay + 1, 2 * decay:
        assert train.learning_rate(max(it, 0), train.Options(**options)) == nanogpt_lr(max(it, 0), **options)
        assert train.learning_rate(max(it, 0), train.Options(**options, decay_lr=False)) == 6e-4


def test_the_learning_rate_used_is_the_scheduled_one(go, tmp_path, monkeypatch):
    used, real = [], torch.optim.AdamW.step

    def step(self, *args):
        used.append([group['lr'] for group in self.param_groups])
        return real(self, *args)
    monkeypatch.setattr(torch.optim.AdamW, 'step', step)
    go(max_iters=15)
    wanted = [nanogpt_lr(it, 1e-2, 2, 12, 1e-3) for it in range(15)]
    assert used == [[lr, lr] for lr in wanted]
    assert [record['lr'] for record in RunFolder(tmp_path / 'run').read_log() if 'lr' in record] == wanted


def small_model(variant='base', **options):
    shape = dict(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=52)
    return build(variant, 3, **shape | options)


def test_matrices_decay_and_vectors_do_not():
    model = small_model(bias=True)
    model.lm_head.weight.lr_scale, model.transformer.wpe.weight.no_decay = 0.5, True
    groups = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), 'cpu').param_groups
    where = {id(p): (g['weight_decay'], g['lr_scale'], g['lr']) for g in groups for p in g['params']}
    assert sum(len(g['params']) for g in groups) == len(where) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        decay = 0.1 * (p.ndim >= 2 and name != 'transformer.wpe.weight')
        scale = 0.5 if name == 'transformer.wte.weight' else 1.0
        assert where[id(p)] == (decay, scale, 1e-3 * scale), name


def test_collections_go_on_after_a_failed_compilation():
    for turn, enabled in (gc.disable, False), (gc.enable, True):
        turn()
        with pytest.raises(RuntimeError), no_garbage_collection():
            assert not gc.isenabled()
            raise RuntimeError
        assert gc.isenabled() == enabled


@pytest.mark.parametrize('variant', ['base', 'surprise'])
def test_an_update_is_plain_pytorch(data, variant):
    """TrainStep equals forward, backward, clipping and AdamW written out, with dropout and accumulation."""
    set_, ours, plain = Dataset(str(data), 16), small_model(variant, dropout=0.1), small_model(variant, dropout=0.1)
    optimizer = ours.configure_optimizers(0.1, 1e-2, (0.9, 0.95), 'cpu')
    update = TrainStep(ours.train(), optimizer, machine('cpu', 'float32', False), (2, 4, 16), 0.5, 1337)
    groups = [dict(params=[p for p in plain.parameters() if p.ndim >= 2], weight_decay=0.1),
              dict(params=[p for p in plain.parameters() if p.ndim < 2], weight_decay=0.0)]
    adamw, seen = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True), []
    for it in range(5):
        x, y = set_.batch('train', it, 8, 1337)
        update(it, x, y, lr := 1e-2 / (it + 1))
        torch.manual_seed(key(1337, 'noise', it, 0))
        mean = 0.0
        for rows in range(0, 8, 4):
            step = Step(it=torch.tensor(float(it)))
            _, loss = plain(x[rows:rows + 4], y[rows:rows + 4], step)
            (loss / 2).backward()
            mean += (loss - sum(step.losses.values())).item() / 2
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        for group in adamw.param_groups:
            group['lr'] = lr
        adamw.step()
        adamw.zero_grad()
        numbers, bad, _ = update.metrics()
        assert not bad and norm > 0.5                       # clipping was at work
        assert numbers['loss'] == pytest.approx(mean, abs=1e-6)
        assert numbers['grad_norm'] == pytest.approx(norm.item(), rel=1e-5)
        assert distance(model_tensors(ours), model_tensors(plain)) == 0
        seen.append((numbers, update.snapshot()))
    # later calls have not changed them
    assert all(update.metrics(snapshot)[0] == numbers for numbers, snapshot in seen)


def test_micro_batches_make_the_same_step_as_one_batch(go, tmp_path):
    go('one', batch_size=8, gradient_accumulation_steps=1, max_iters=3)
    go('four', batch_size=2, gradient_accumulation_steps=4, max_iters=3)
    one, four = losses(tmp_path / 'one'), losses(tmp_path / 'four')
    assert one == pytest.approx(four, abs=1e-5) and len(set(one.values())) == 3
    assert distance(weights(tmp_path / 'one', 3), weights(tmp_path / 'four', 3)) < 1e-5


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision_trains(go, tmp_path, dtype):
    assert go(dtype=dtype, max_iters=5, gradient_accumulation_steps=2).code == 0
    assert go('exact', max_iters=5, gradient_accumulation_steps=2).code == 0
    half, exact = losses(tmp_path / 'run'), losses(tmp_path / 'exact')
    assert half == pytest.approx(exact, abs=0.05) and half != exact     # in that precision indeed
    assert half[4] < half[0] - 0.05
    assert {t.dtype for t in weights(tmp_path / 'run', 5).values()} == {torch.float32}


TWO = dict(gradient_accumulation_steps=2, max_iters=10, variant='surprise')


def same_training(one, two):
    """Asserts that two runs are equal except for the order in which two processes add."""
    assert distance(weights(one, 10), weights(two, 10)) < 1e-4
    one, two = (RunFolder(out).read_log() for out in (one, two))
    assert [record['iter'] for record in one] == [record['iter'] for record in two]
    for a, b in zip(one, two, strict=True):
        for name in a.keys() & {'loss', 'loss.prior', 'val_loss', 'train_loss', 'grad_norm', 'lr'}:
            assert b[name] == pytest.approx(a[name], abs=1e-4), (a['iter'], name)


@pytest.fixture
def pair(spawn, tmp_path):
    """pair('run', hook, n_layer=3) trains in two processes together, to their end."""
    def train_both(out, hook, **options):
        with socket.socket() as free:
            free.bind(('localhost', 0))
            port = free.getsockname()[1]
        children = [spawn(out, partial(rank, number, port, hook), **options) for number in (0, 1)]
        for child in children:
            child.join(60)
        assert [child.exitcode for child in children] == [0, 0], (tmp_path / 'output').read_text()
    return train_both


@posix
def test_two_processes_train_as_one(pair, go, tmp_path):
    pair('two', nothing, **TWO)
    assert go('one', **TWO).code == 0
    same_training(tmp_path / 'one', tmp_path / 'two')


@posix
def test_a_run_goes_on_in_two_processes(pair, go, tmp_path):
    options = TWO | dict(eval_interval=5)
    assert go('one', **options).code == go('two', **options | dict(max_iters=5)).code == 0
    pair('two', nothing, **options, init_from='resume')
    same_training(tmp_path / 'one', tmp_path / 'two')


@pytest.mark.slow
def test_torchrun_trains_as_one(data, go, tmp_path):
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', ROOT / 'train.py']
    args = TINY | dict(dataset=data, out_dir=tmp_path / 'two', backend='gloo') | TWO
    done = subprocess.run([*torchrun, *flags(**args)], env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert go('one', **TWO).code == 0
    same_training(tmp_path / 'one', tmp_path / 'two')


@posix
def test_a_gradient_that_overflows_in_one_process_is_skipped_in_both(pair, tmp_path):
    pair('run', overflow, gradient_accumulation_steps=2, dtype='float16', max_iters=6, eval_interval=6)
    assert sorted(losses(tmp_path / 'run')) == list(range(6))
    optim = weights(tmp_path / 'run', 6, OPTIM)
    # six iterations but one
    assert {t.item() for name, t in optim.items() if name.endswith('.step')} == {5}


# -- evaluation

def test_evaluation_is_the_mean_over_every_target(data, monkeypatch):
    set_, m = Dataset(str(data), 16), machine('cpu', 'float32', False)
    model = small_model(dropout=0.5).double().train()
    ids = set_.tokens['val'].long()
    total = sum(F.cross_entropy(model.eval()(ids[None, i:i + 16], ids[None, i + 1:i + 17])[0][0, :len(ids) - 1 - i],
                                ids[i + 1:i + 17], reduction='sum').item()
                for i in range(0, len(ids) - 17, 16))
    last = (len(ids) - 1) // 16 * 16                        # 15 targets are left: a window of their own
    logits, _ = model(ids[None, last:-1], ids[None, last + 1:])
    total += F.cross_entropy(logits[0], ids[last + 1:], reduction='sum').item()
    model.train()
    noise = torch.get_rng_state()
    for rows in 7, 25, 1:                                   # 25 windows: 7, 7, 7 and 4
        monkeypatch.setattr(evaluation, 'CPU_TOKENS', 16 * rows)
        found = train.evaluate(model, set_, m, 'val', 4)
        assert found.loss == pytest.approx(total / (len(ids) - 1), abs=1e-6)
    assert model.training and torch.equal(torch.get_rng_state(), noise)


def test_evaluation_leaves_out_the_variants_own_losses(data):
    set_, m = Dataset(str(data), 16), machine('cpu', 'float32', False)
    plain, heavy = (train.evaluate(small_model('surprise', prior_loss=w), set_, m, 'val', 8) for w in (0.0, 1e6))
    assert plain.loss == heavy.loss


EASY = """
    import torch
    import torch.nn.functional as F

    import model

    NEUTRAL = {}


    class GPT(model.GPT):

        # in evaluation hard tokens count less, and logits know the targets
        def forward(self, idx, targets=None, step=None):
            logits, loss = super().forward(idx, targets, step)
            if targets is not None and not self.training:
                losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction='none', ignore_index=-1)
                loss = 0.1 * (losses * torch.exp(-losses)).mean()
                logits = logits + 9 * F.one_hot(targets.clamp(min=0), logits.size(-1))
            return logits, loss
"""


def test_no_variant_can_weigh_its_own_loss_or_see_the_targets(go, drop, tmp_path, monkeypatch):
    drop('easy', EASY)
    monkeypatch.setattr(train, 'describe_run', lambda *args: {}) # it wants variants to lie in the repository
    idx = torch.zeros(1, 4, dtype=torch.long)
    easy, base = (small_model(variant).eval()(idx, idx)[1] for variant in ('easy', 'base'))
    assert easy < 0.1 * base                                # the fault that is planted
    assert go('easy', variant='easy').code == go('base').code == 0
    assert log(tmp_path / 'easy') == log(tmp_path / 'base')


def test_targets_are_for_training_alone(go, drop, monkeypatch):
    monkeypatch.setattr(train, 'describe_run', lambda *args: {})
    drop('needs_targets', """
        import model

        NEUTRAL = {}


        class GPT(model.GPT):

            def forward(self, idx, targets=None, step=None):
                assert (targets is not None) == self.training
                return super().forward(idx, targets, step)
    """)
    assert go(variant='needs_targets').code == 0


def test_a_variant_that_gives_the_last_position_alone_is_refused(go, drop, tmp_path):
    drop('last', """
        import model

        NEUTRAL = {}


        class GPT(model.GPT):

            def forward(self, idx, targets=None, step=None):
                logits, loss = super().forward(idx, targets, step)
                return (logits[:, -1:] if targets is None else logits), loss
    """)
    line = go(variant='last').line(BAD_INPUT)
    assert line.startswith('variant=last: with step.all_positions forward() returns logits (4, 1, 52) for tokens')
    assert not (tmp_path / 'run/config.json').exists()


def test_only_the_last_evaluation_reads_all_of_both_splits(data, go, tmp_path, monkeypatch):
    read, windows = [], Dataset.windows

    def watched(self, split, size, limit):
        read.append((split, limit))
        return windows(self, split, size, limit)
    monkeypatch.setattr(Dataset, 'windows', watched)
    done = go(curve_iters=2)                                # of 4 rows; the validation split has 25
    assert read == [('val', 8), ('val', 8), ('val', 8), ('val', 0), ('train', 8)]
    evals = [record for record in RunFolder(tmp_path / 'run').read_log() if 'val_loss' in record]
    assert [record['train_loss'] is None for record in evals] == [True, True, True, False]
    assert re.findall('^step .*', done.out, re.M)[2:] == [
        'step 8: val loss {val_loss:.4f}, {bits_per_byte:.4f} bits per byte'.format(**evals[2]),
        'step 12: train loss {train_loss:.4f}, val loss {val_loss:.4f}, '
        '{bits_per_byte:.4f} bits per byte'.format(**evals[3])]
    read.clear()
    go(eval_train='always', eval_iters=3, max_iters=4)
    assert read == [('val', 12), ('train', 12)] * 2
    read.clear()
    go(max_iters=4)
    assert read == [('val', 0), ('val', 0), ('train', 25)]


# -- what a run leaves behind

def test_the_records_of_a_run(data, go, tmp_path):
    done = go(variant='surprise', max_iters=8, seed=5, log_interval=2, dropout=0.1)
    out = tmp_path / 'run'
    config, result = (json.loads((out / name).read_text()) for name in ('config.json', 'result.json'))
    records = RunFolder(out).read_log()

    given = OPTIONS | dict(variant='surprise', dataset=str(data), out_dir=str(out), max_iters=8, seed=5, log_interval=2)
    assert config['options'] == vars(train.Options(**given))
    shape = dict(n_layer=2, n_head=2, n_embd=16, block_size=16, dropout=0.1, vocab_size=52)
    assert shape.items() <= config['model_args'].items()
    given = {*TINY, *given, 'dropout'}
    options = {*config['options'], *vars(load_classes('surprise').GPTConfig())}
    assert config['origin'] == {name: 'command line' if name in given else 'default' for name in options}
    assert '--seed=5' in config['argv'] and config['versions']['torch'] == torch.__version__
    assert config['code'] == {name: sha256(ROOT / name) for name in ('model.py', 'variants/surprise.py')}
    assert (config['device'], config['dtype'], config['compile']) == ('cpu', 'float32', False)

    evals = [record for record in records if 'val_loss' in record]
    steps = [record for record in records if 'loss' in record]
    assert [record['iter'] for record in evals] == [0, 4, 8] and [record['iter'] for record in steps] == [0, 2, 4, 6]
    assert all({'loss', 'loss.prior', 'grad_norm', 'lr', 'ms'} < record.keys() for record in steps)
    for record in evals:                                    # a number a layer
        assert {name: len(x) for name, x in record.items() if name.startswith('stats.')} == {
            'stats.gate': 2, 'stats.surprise': 2, 'stats.change': 2}
        assert all(0 <= gate <= 1 for gate in record['stats.gate'])

    model = build('surprise', 5, **config['model_args'])
    assert result['val_loss'] == evals[-1]['val_loss'] and result['train_loss'] == evals[-1]['train_loss']
    assert result['best_val_loss'] == min(record['val_loss'] for record in evals)
    assert result['bits_per_byte'] == evals[-1]['bits_per_byte'] == pytest.approx(result['val_loss'] / math.log(2))
    expected = dict(iters=8, seed=5, variant='surprise', params=model.get_num_params())
    assert expected.items() <= result.items()
    flops = result['forward_flops_per_token'], result['flops_per_token']
    assert flops == flops_per_token(load_classes('surprise'), model.config) and flops[1] > 2 * flops[0] > 0
    assert result['seconds'] > 0 and result['peak_bytes'] > 0
    assert f"best val loss {result['best_val_loss']:.4f}" in done.out

    # the final loss is that of the final weights, whole split
    state, tensors, _ = RunFolder(out).load('latest')
    load_model_tensors(model, tensors)
    again = train.evaluate(model, Dataset(str(data), 16), machine('cpu', 'float32'), 'val', 4, it=8)
    assert again.loss == result['val_loss'] == state['val_loss']


def test_the_logged_loss_is_cross_entropy_alone(data, go, tmp_path):
    go(variant='surprise', prior_loss=5.0, max_iters=1)
    record = RunFolder(tmp_path / 'run').read_log()[1]
    set_, step = Dataset(str(data), 16), Step()
    shape = {name: TINY[name] for name in ('n_layer', 'n_head', 'n_embd', 'block_size')}
    x, y = set_.batch('train', 0, 4, 1337)
    logits, _ = build('surprise', 1337, vocab_size=52, prior_loss=5.0, **shape)(x, y, step)
    assert record['loss'] == pytest.approx(F.cross_entropy(logits.flatten(0, 1), y.flatten()).item(), abs=1e-5)
    assert record['loss.prior'] == pytest.approx(step.losses['prior'].item(), rel=1e-4) and record['loss.prior'] > 0.001


def test_the_best_checkpoint_is_kept(go, tmp_path):
    """With a learning rate that ruins it, the first evaluation is the best, and stays."""
    go(learning_rate=5.0, min_lr=5.0, max_iters=20, eval_interval=2, always_save_checkpoint=False)
    evals = {r['iter']: r['val_loss'] for r in RunFolder(tmp_path / 'run').read_log() if 'val_loss' in r}
    best = min(evals, key=evals.get)
    state, _, _ = RunFolder(tmp_path / 'run').load('best')
    assert state['step'] == best < 20 and state['val_loss'] == evals[best]
    assert RunFolder(tmp_path / 'run').load('latest')[0]['step'] == 20
    result = json.loads((tmp_path / 'run/result.json').read_text())
    assert (result['val_loss'], result['best_val_loss']) == (evals[20], evals[best])


# -- what surrounds a run

def test_names_that_shells_and_people_use(data, tmp_path, monkeypatch):
    """Spaces, =, quotes, characters beyond ASCII, in every name that is given."""
    odd = tmp_path / "my runs = 'naïve' 漢字 %s {x} #1"
    odd.mkdir()
    shutil.copytree(data, odd / 'data set = é')
    monkeypatch.chdir(odd)
    Path('my config = é.py').write_text('max_iters = 4\n', encoding='utf-8')
    options = {name: value for name, value in TINY.items() if name != 'max_iters'}
    done = call(train.main, 'my config = é.py', **options, dataset='data set = é', out_dir='out = é')
    assert done.code == 0, done.err
    assert call(train.main, init_from='resume', out_dir='out = é', max_iters=6).code == 0
    Path('prompt = é.txt').write_text('All:')
    done = call(sample.main, out_dir='out = é', start='FILE:prompt = é.txt', num_samples=1, max_new_tokens=5)
    assert done.code == 0 and done.out.startswith('All:')


@pytest.mark.slow
def test_a_locale_that_is_not_utf8(data, tmp_path):
    env = ENV | dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0', PYTHONIOENCODING='ascii')
    out = tmp_path / 'naïve'
    for script, options in ('train.py', TINY | dict(dataset=data, out_dir=out, max_iters=2)), \
                           ('sample.py', dict(out_dir=out, num_samples=1, max_new_tokens=5)):
        done = subprocess.run([sys.executable, str(ROOT / script), *flags(**options)], env=env, capture_output=True)
        assert done.returncode == 0, done.stderr
        # the two bytes of ï, as Python writes a path that the locale cannot read
        assert r'na\udcc3\udcafve' in (done.stdout + done.stderr).decode('ascii')
    assert (out / 'result.json').exists()


def test_no_network_and_no_secrets(data, tmp_path, monkeypatch):
    """Training and sampling open no connection, and keep neither the environment nor the home folder's name."""
    def connect(*args):
        raise AssertionError(f'a connection to {args}')
    for name in 'connect', 'connect_ex', 'sendto':
        monkeypatch.setattr(socket.socket, name, connect)
    monkeypatch.setattr(socket, 'getaddrinfo', connect)
    home = tmp_path / 'home-of-someone'
    home.mkdir()
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.setenv('HF_TOKEN', 'hf_verysecret')
    shutil.copytree(data, tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    assert call(train.main, **TINY | dict(dataset='data', out_dir='run', max_iters=4)).code == 0
    assert call(sample.main, out_dir='run', num_samples=1, max_new_tokens=5).code == 0
    kept = b''.join(path.read_bytes() for path in (tmp_path / 'run').rglob('*') if path.is_file())
    assert b'max_iters' in kept
    for private in 'hf_verysecret', 'home-of-someone', 'HF_TOKEN':
        assert private.encode() not in kept


@pytest.mark.parametrize('out, says', [('file/run', 'Not a directory'), ('file', 'File exists'),
                                       ('/proc/run', 'No such file or directory'), ('x' * 5000, 'File name too long')])
def test_a_folder_that_cannot_be_written_is_one_line(go, tmp_path, out, says):
    (tmp_path / 'file').touch()
    line = go(out).line(BAD_INPUT)
    assert line.startswith(f'--out_dir={tmp_path / out}: ') and line.endswith(says)


def test_a_device_that_runs_out_of_memory(go, tmp_path, monkeypatch):
    """As an allocator reports it, in the middle of a run: what fits is said, and the checkpoint stays."""
    real = TrainStep.__call__

    def update(self, it, *args):
        if it == 6:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')
        real(self, it, *args)
    monkeypatch.setattr(TrainStep, '__call__', update)
    line = go().line(OUT_OF_MEMORY)
    assert 'Tried to allocate 2.00 GiB' in line and '--batch_size' in line and '--gradient_accumulation_steps' in line
    assert RunFolder(tmp_path / 'run').load()[0]['step'] == 4


# -- Weights & Biases

@pytest.mark.parametrize('where', ['import', 'init', 'hang', 'log', 'nowhere'])
def test_wandb_never_ends_a_run(go, tmp_path, monkeypatch, where):
    seen = []

    def fail(*args, **kwargs):
        raise OSError('no route\nto host')

    def see(record, step):
        seen.append(step)
    run = SimpleNamespace(log=fail if where == 'log' else see, finish=lambda: None)
    hang = lambda **kwargs: time.sleep(20)
    monkeypatch.setattr(progress, 'WANDB_SECONDS', 0.2 if where == 'hang' else 9)
    begin = dict(init=fail, hang=hang).get(where, lambda **kwargs: run)
    fake = SimpleNamespace(Settings=lambda **kwargs: None, init=begin)
    monkeypatch.setitem(sys.modules, 'wandb', None if where == 'import' else fake)
    done = go(wandb_log=True)
    assert done.code == 0
    if where == 'nowhere':
        assert done.err == '' and seen == [record['iter'] for record in RunFolder(tmp_path / 'run').read_log()]
    else:
        line = done.line(0)
        said = {'import': 'not installed (pip install wandb)', 'hang': 'no answer in 0.2 s'}
        said = said.get(where, 'no route to host')
        assert line == f'wandb: {said}; the run goes on, log.jsonl has the numbers'
    go('without')
    same_run(tmp_path / 'run', tmp_path / 'without', 12)


def test_a_resumed_run_is_the_same_one_at_wandb(go, resume, monkeypatch):
    ids = []
    run = SimpleNamespace(log=lambda record, step: None, finish=lambda: None)
    init = lambda id, resume, **kwargs: (ids.append((id, resume)), run)[1]
    monkeypatch.setitem(sys.modules, 'wandb', SimpleNamespace(Settings=lambda **kwargs: None, init=init))
    go(wandb_log=True)
    resume(max_iters=14)
    # one that is not logged there does not lose the id, and another run has another one
    resume(max_iters=16, wandb_log=False)
    resume(max_iters=18, wandb_log=True)
    go(wandb_log=True)
    first, second = ids[0], ids[-1]
    assert ids == [first] * 3 + [second] and first != second and re.fullmatch('[0-9a-z]{8}', first[0])
    assert first[1] == 'allow'


def test_wandb_is_imported_only_when_asked(go, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)         # importing it would fail
    assert go(max_iters=1).err == ''


# -- a variant of one's own

SCALE = '''"""Each block's update times a learned number. Source: arXiv 2003.04887 (ReZero), but started at 1."""
import torch
import torch.nn as nn

import model

NEUTRAL = {}

class Block(model.Block):
    def __init__(self, config, parts, layer):
        super().__init__(config, parts, layer)
        self.scale = nn.Parameter(torch.ones(()))
        self.scale.init = nn.init.ones_
    def forward(self, x, step):
        return x + self.scale * (super().forward(x, step) - x)
'''


@pytest.fixture
def checkout(tmp_path):
    """Gives a copy of the repository with a small data set, to drop a file into."""
    copy, leave = tmp_path / 'checkout', shutil.ignore_patterns('__pycache__', 'golden')
    for name in 'core', 'lab', 'variants', 'tests':
        shutil.copytree(ROOT / name, copy / name, ignore=leave)
    for file in (*ROOT.glob('*.py'), ROOT / 'pyproject.toml'):
        shutil.copy(file, copy)
    shakespeare(copy / 'data/tiny')
    return copy


# several commands in one process, which imports torch once
COMMANDS = '''
import json, sys
import sample, train
from core.errors import run_main
for script, *args in json.loads(sys.argv[1]):
    sys.argv = [script, *args]
    run_main({'train.py': train.main, 'sample.py': sample.main}[script])
'''


def test_a_file_is_a_variant(checkout, go, tmp_path):
    assert len(SCALE.splitlines()) == 15
    (checkout / 'variants/scale.py').write_text(SCALE)
    (checkout / 'commands.py').write_text(COMMANDS)
    args = {name: value for name, value in TINY.items() if name != 'max_iters'}
    commands = [['train.py', '--variant=scale', *flags(**args, dataset='tiny', max_iters=8)],
                ['train.py', *flags(init_from='resume', out_dir='out-scale', max_iters=12)],
                ['sample.py', *flags(out_dir='out-scale', num_samples=2, max_new_tokens=20, device='cpu')]]
    done, out = shell('commands.py', json.dumps(commands), cwd=checkout), checkout / 'out-scale'
    assert done.code == 0 and done.out.count('---------------') == 2
    assert all(line.endswith(' (command line)') for line in done.err.splitlines()) # sample.py's options
    assert {'iters': 12, 'variant': 'scale'}.items() <= json.loads((out / 'result.json').read_text()).items()
    assert 'variants/scale.py' in json.loads((out / 'config.json').read_text())['code']

    # all that it adds is a number a block, which learns
    base = go('base')
    assert base.code == 0
    scaled, plain = weights(out, 12), weights(tmp_path / 'base', 12)
    scales = {name: scaled[name].item() for name in scaled.keys() - plain.keys()}
    assert scales.keys() == {'transformer.h.0.scale', 'transformer.h.1.scale'}
    assert all(0.001 < abs(scale - 1) < 0.2 for scale in scales.values())
    one, other = losses(out), losses(tmp_path / 'base')
    assert one[0] == pytest.approx(other[0], abs=1e-6) and one[11] != other[11] and sorted(one) == list(range(12))


@pytest.mark.slow
def test_a_file_is_tested(checkout):
    (checkout / 'variants/scale.py').write_text(SCALE)
    pytest_ = [sys.executable, '-m', 'pytest', 'tests/variants/test_variants.py', '-k', 'scale', '-q',
               '-p', 'no:cacheprovider']
    done = subprocess.run(pytest_, cwd=checkout, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r'(\d+) passed', done.stdout)[1]) > 10


# Sums of variants, and what must show in their runs. Between them they have buffers that learn, every auxiliary
# loss, noise of each kind, parameters in every group of the optimizers, a GradScaler, and statistics.
SUMS = [
    (dict(variant='mod+embedding_gate+softcap+dropconnect+noise_mixup+cosine_norm'),
     ['loss.z', 'stats.routed', 'stats.gate', '.least']),
    (dict(variant='sdt+alibi+gqa+noise_residual+fractal_heads+rmsnorm+scaled_embedding', optimizer='muon'),
     ['loss.prior', 'stats.surprise', '.least', '.momentum_buffer']),
    (dict(variant='stt+rope+sliding_window+qk_norm+wide_mlp', router='topk'),
     ['loss.prior', 'loss.router', 'stats.routed']),
    (dict(variant='surprise+hard_window+canon+value_residual+head_scaling+glu+post_norm', gate='row', block_loss=0.1),
     ['loss.prior', 'loss.block', 'stats.window', 'stats.first_value', 'stats.head_scale']),
    (dict(variant='relative_location+adaptive_span+noise_embedding+relu2+mtp_weighted', dtype='float16'),
     ['loss.span', 'stats.span', 'loss.mtp_3'])]


def trained_stopped_resumed_sampled(data, folder, **options):
    """Gives the run folder of a training that equals, to the bit, one in two parts, and can be sampled."""
    options = TINY | dict(dataset=data, max_iters=4, lr_decay_iters=4, eval_interval=2, dropout=0.1) | options
    whole, parts = folder / 'whole', folder / 'parts'
    assert call(train.main, **options | dict(out_dir=whole)).code == 0
    assert call(train.main, **options | dict(out_dir=parts, max_iters=2)).code == 0
    assert call(train.main, init_from='resume', out_dir=parts, max_iters=4).code == 0
    same_run(whole, parts, 4)
    done = call(sample.main, out_dir=whole, num_samples=1, max_new_tokens=20)
    assert done.code == 0 and len(done.out) > 20
    return whole


@pytest.mark.parametrize('options, seen', SUMS, ids=[options['variant'] for options, _ in SUMS])
def test_variants_by_the_scripts(data, tmp_path, options, seen):
    out = trained_stopped_resumed_sampled(data, tmp_path, **options)
    names = {name for record in RunFolder(out).read_log() for name in record}
    names |= weights(out, 4).keys() | weights(out, 4, OPTIM).keys()
    assert [end for end in seen if not any(name.endswith(end) for name in names)] == []


@pytest.mark.slow
@pytest.mark.parametrize('variant', variant_names())
def test_every_variant_by_the_scripts(data, tmp_path, variant):
    trained_stopped_resumed_sampled(data, tmp_path, variant=variant)
