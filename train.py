"""Trains a GPT, or one of its variants, and keeps everything about the run in out_dir.

    python train.py config/train_shakespeare_char.py --variant=surprise
    python train.py --init_from=resume --out_dir=out-surprise
    torchrun --standalone --nproc_per_node=4 train.py config/train_gpt2.py
"""
if __name__ == '__main__':
    # before PyTorch, whose import takes seconds
    from core.errors import exit_on_interrupt
    exit_on_interrupt()

import dataclasses
import math
import os
import signal
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

from configurator import (
    COMMAND_LINE,
    Count,
    DeviceOptions,
    FilePath,
    NonNegative,
    Rate,
    Whole,
    configure,
    construct_checked,
    options_of,
)
from core.assemble import is_path, short_name
from core.data.dataset import Dataset
from core.device.flops import flops_per_token
from core.device.machine import Machine, machine
from core.errors import DIVERGED, NO_CHECKPOINT, Stop, printable, run_main, terminal_may_close
from core.run.checkpoint import is_spaced, load_model_tensors, measured_on, model_tensors
from core.run.environment import describe_run
from core.run.files import disk_errors
from core.run.folder import RunFolder
from core.run.progress import Progress, wandb_logger, wandb_run_id
from core.run.resume import check_fits, check_named, check_state, load_run_config, resumed, unusable
from core.training import evaluation
from core.training.processes import end_with_torchrun, torchrun_ranks
from core.training.signals import Interrupted, Signals
from core.training.train_step import TrainStep
from model import GPT, GPT2_SIZES, Step, build, build_gpt2, load_classes


@dataclass
class Options(DeviceOptions):
    # the defaults train GPT-2 (124M) on OpenWebText
    # I/O
    out_dir: FilePath = 'out'           # run folder; out-<variant> when --variant is given without it
    eval_interval: Count = 2000         # iterations between evaluations
    log_interval: Count = 1             # iterations between log lines, the only ones that wait for the device
    eval_iters: Whole = 0               # batches an evaluation reads, spread over the split; 0: the whole split
    curve_iters: Whole = 0              # the same for evaluations before the last; 0: as many as the last
    eval_train: Literal['last', 'always'] = 'last' # evaluations that read as much of the train split: the last, or all
    eval_only: bool = False             # evaluate once and stop
    always_save_checkpoint: bool = True # at every evaluation, sample the newest; False: the best, at times the newest
    save_best: bool = True              # whenever validation improves; False: at the end, and every checkpoint_minutes
    keep: Literal['none', 'log'] = 'none' # log: the weights of iterations 0 1 2 3 4 5 6 7 8 10 12 14 16 20 ... stay
    checkpoint_minutes: NonNegative = 5.0 # no more than these are lost to a power cut
    init_from: str = 'scratch'          # scratch, resume (out_dir's newest), gpt2, gpt2-medium, gpt2-large, gpt2-xl
    # wandb
    wandb_log: bool = False             # log to Weights & Biases as well
    wandb_project: str = 'owt'          # its project
    wandb_run_name: str = 'gpt2'        # its run name
    # data
    dataset: FilePath = 'openwebtext'   # a folder in data/, or the path of one
    gradient_accumulation_steps: Count = 5 * 8 # micro-batches an iteration, over all processes
    batch_size: Count = 12              # rows a micro-batch
    # model
    variant: str = 'base'               # a file in variants/, or several: a+b
    # AdamW
    optimizer: Literal['adamw', 'muon'] = 'adamw' # muon: for the matrices of the blocks, the rest stays AdamW's
    learning_rate: NonNegative = 6e-4   # the largest of the schedule
    max_iters: Whole = 600000           # iterations in all
    weight_decay: NonNegative = 1e-1    # on matrices and embeddings
    beta1: Rate = 0.9                   # decay of the mean gradient
    beta2: Rate = 0.95                  # decay of the mean squared gradient
    grad_clip: NonNegative = 1.0        # largest gradient norm; 0: no clipping
    decay_lr: bool = True               # warm up, then follow a cosine down to min_lr; False: constant
    warmup_iters: Whole = 2000          # iterations of linear warm-up
    lr_decay_iters: Whole = 600000      # where the cosine ends, and variants' schedules; about max_iters (Chinchilla)
    min_lr: NonNegative = 6e-5          # the smallest, about learning_rate / 10 (Chinchilla)
    # system
    backend: Literal['auto', 'nccl', 'gloo'] = 'auto' # how processes under torchrun talk; auto: nccl on CUDA, else gloo
    seed: Whole = 1337                  # of the initial weights, the batches and the dropout


RANK, LOCAL_RANK, WORLD_SIZE = 0, 0, 1
# setup() reports it, because other programs import this module
with suppress(Stop):
    RANK, LOCAL_RANK, WORLD_SIZE = torchrun_ranks()
MASTER_PROCESS = RANK == 0 # it alone evaluates, logs and saves


def print0(text):
    if MASTER_PROCESS:
        with terminal_may_close():
            print(printable(text), flush=True)


@dataclass
class Session:
    """Everything that a run needs before its first iteration."""
    options: Options
    run: RunFolder
    machine: Machine
    data: Dataset
    model: GPT
    train_step: TrainStep
    state: dict         # what a checkpoint has besides tensors: step, best_val_loss, seconds, options, ...
    resumed: bool       # by --init_from=resume


# -----------------------------------------------------------------------------
# from the options to a session

def out_dir_of(options, origin):
    """Returns the run folder: --out_dir if given on the command line.

    Else out-<variant> if a variant is given, unless one config file sets both. Else the config file's
    out_dir, or the default.
    """
    by_hand = origin['out_dir'] == COMMAND_LINE
    # an origin from a file is config/x.py:3, the place of the assignment
    same_file = origin['variant'].rsplit(':', 1)[0] == origin['out_dir'].rsplit(':', 1)[0]
    if by_hand or origin['variant'] == 'default' or same_file and origin['out_dir'] != 'default':
        return options.out_dir
    return f'out-{short_name(options.variant)}'


def resolve(config, run):
    """Returns (options, model_args, origin, saved, tensors, optimizer tensors) of a run; writes nothing.

    saved: the checkpoint's state of the run to resume, or its config.json if it has no checkpoint yet.
    tensors, optimizer tensors: the checkpoint's. All three are None for a new run. Stop if there is no run to
    resume, and for options that cannot be.
    """
    o, model_args, origin = config.options, dict(config.model_args), config.origin
    saved = tensors = optim = None
    # to resume, the run's own options come first, then those given now
    if o.init_from == 'resume':
        if run.checkpoints():
            saved, tensors, optim = run.load('latest')
            with unusable(run.ckpt):
                check_state(saved, tensors)
            check_named(saved['options']['variant'], o.variant)
            with unusable(run.ckpt):
                check_saved_options(saved)
        else:
            saved = load_run_config(run.out_dir / 'config.json')
            check_named(str(saved['options'].get('variant')), o.variant)
            check_saved_options(saved)
            print0(f'{run.out_dir} has no checkpoint yet: its run starts over')
        o, model_args, origin = resumed(config, saved, print0)
    elif o.init_from in GPT2_SIZES:
        check_gpt2_options(o.init_from, model_args, origin)
    if o.init_from not in ('scratch', *GPT2_SIZES):
        raise Stop(f"init_from={o.init_from}: allowed: scratch, resume, {', '.join(GPT2_SIZES)}")
    # each process takes an equal share of the micro-batches
    if o.gradient_accumulation_steps % WORLD_SIZE:
        raise Stop(f'gradient_accumulation_steps={o.gradient_accumulation_steps}: '
                   f'must be a multiple of the {WORLD_SIZE} processes')
    return dataclasses.replace(o, out_dir=str(run.out_dir)), model_args, origin, saved, tensors, optim


def check_saved_options(saved):
    """Raises Stop if a saved run's options are not allowed, whatever wrote them."""
    known = options_of(Options)
    # an option that is no more counts for nothing
    o = construct_checked(Options, {name: value for name, value in saved['options'].items() if name in known})
    if 'init_from' not in saved['options'] or o.init_from not in ('scratch', *GPT2_SIZES):
        raise Stop(f"init_from={saved['options'].get('init_from')!r}: allowed: scratch, {', '.join(GPT2_SIZES)}")
    construct_checked(load_classes(o.variant).GPTConfig, saved['model_args'])


def check_gpt2_options(name, model_args, origin):
    """Raises Stop if one of the model's options is not what GPT-2's weights have."""
    fixed = GPT2_SIZES[name] | dict(bias=True, vocab_size=50257)
    for option, value in fixed.items():
        if model_args.get(option, value) != value:
            raise Stop(f'{option}={model_args[option]} ({origin[option]}): init_from={name} has {option}={value}; '
                       'leave it out, or start with --init_from=scratch')
    if model_args.get('block_size', 1024) > 1024:
        raise Stop(f"block_size={model_args['block_size']}: init_from={name} has at most 1024")


def setup(config):
    """Returns the Session for what configure() returned; Stop before anything is written if it cannot run."""
    torchrun_ranks()
    run = RunFolder(out_dir_of(config.options, config.origin))
    # a typo makes no folder
    if config.options.init_from == 'resume' and not run.holds_run():
        raise Stop(f'init_from=resume: {run.out_dir} holds no run{run.nanogpt_checkpoint()}', NO_CHECKPOINT)
    if MASTER_PROCESS and config.options.init_from != 'resume' and not config.options.eval_only:
        run.check_ours()
    # the lock comes first: no other run may write there while this one reads
    if MASTER_PROCESS and not config.options.eval_only:
        run.lock()
    o, model_args, origin, saved, tensors, optim = resolve(config, run)

    # the device, and the other processes
    on_local_gpu = WORLD_SIZE > 1 and o.device in ('auto', 'cuda') and torch.cuda.is_available()
    m = machine(f'cuda:{LOCAL_RANK}' if on_local_gpu else o.device, o.dtype, o.compile)
    if WORLD_SIZE > 1:
        backend = ('nccl' if m.type == 'cuda' else 'gloo') if o.backend == 'auto' else o.backend
        dist.init_process_group(backend, device_id=torch.device(m.device) if backend == 'nccl' else None)
    print0(f"device {m.name}, {m.dtype}, {'compiled' if m.compile else 'eager'}"
           + (f', {WORLD_SIZE} processes' if WORLD_SIZE > 1 else ''))

    # a checkpoint's model comes first: sizes that its tensors do not have are not to be used
    classes = load_classes(o.variant)
    model_config = construct_checked(classes.GPTConfig, model_args)
    block_size = model_config.block_size
    if tensors is not None:
        check_fits(lambda: classes.GPT(model_config, classes), model_config, tensors)
        model = build(o.variant, o.seed, **model_args)
        load_model_tensors(model, tensors)

    # data: a resumed run needs the tokens it was trained on
    data = Dataset(o.dataset, block_size, m.device)
    if saved is not None and saved.get('tokenizer') != data.tokenizer.meta:
        raise Stop(f'dataset={o.dataset}: its tokens are not those that the run to resume was trained on')
    if saved is not None and saved.get('data') != data.hash:
        print0(f'dataset {o.dataset}: its text is not the one before')
    if saved is None and o.init_from in GPT2_SIZES and data.tokenizer.kind != 'gpt2':
        raise Stop(f'dataset={o.dataset}: its tokens are of the kind {data.tokenizer.kind}, '
                   f'those of init_from={o.init_from} of the kind gpt2')
    # the vocabulary is the data's, unless a larger one is given
    if data.vocab_size > model_args.setdefault('vocab_size', data.vocab_size):
        raise Stop(f"vocab_size={model_args['vocab_size']}: data/{o.dataset} has {data.vocab_size} tokens")

    # a new model: from scratch, or from GPT-2's weights
    if tensors is None and o.init_from in GPT2_SIZES:
        model = build_gpt2(o.init_from, o.variant, o.seed, **model_args)
    elif tensors is None:
        model = build(o.variant, o.seed, **model_args)
    model.schedule_iters = o.lr_decay_iters
    # a model that cannot run says so here, before its run folder is touched
    model.to(m.device).eval()
    try_forward(model, m, o.batch_size, block_size, o.variant)
    model.train()

    # the optimizer, and one training iteration; the processes share the micro-batches
    betas = o.beta1, o.beta2
    optimizer = model.configure_optimizers(o.weight_decay, o.learning_rate, betas, m.type, o.optimizer)
    shape = o.gradient_accumulation_steps // WORLD_SIZE, o.batch_size, block_size
    train_step = TrainStep(model, optimizer, m, shape, o.grad_clip, o.seed, RANK, WORLD_SIZE)
    if tensors is not None:
        train_step.load_state(optim, saved)
        # loading the optimizer's state has moved the weights
        load_model_tensors(model, tensors)

    # the counters go on from the checkpoint; everything else is as this run has it
    before = saved if tensors is not None else dict(step=0, best_val_loss=None, seconds=0.0)
    state = before | dict(options=dataclasses.asdict(o), model_args=dataclasses.asdict(model.config),
                          origin=origin, tokenizer=data.tokenizer.meta, data=data.hash)
    # losses on other text, or on another part of it, cannot be compared
    if tensors is not None and measured_on(state) != measured_on(before):
        print0('validation measures something else from here: the best loss begins anew')
        state['best_val_loss'] = None
    return Session(o, run, m, data, model, train_step, state, resumed=config.options.init_from == 'resume')


@torch.no_grad()
def try_forward(model, m, batch_size, block_size, variant):
    """Runs a forward pass as evaluation does; prints attention's backends.

    In it a model refuses what it cannot compute. Stop if its logits are not those of every position.
    """
    idx = torch.zeros(batch_size, block_size, dtype=torch.long, device=m.device)
    backends = set()
    with m.precision():
        logits, _ = model(idx, step=Step(backends=backends, all_positions=True))
    if logits.shape[:2] != idx.shape:
        raise Stop(f'variant={variant}: with step.all_positions forward() returns logits {tuple(logits.shape)} '
                   f'for tokens {tuple(idx.shape)}; it must return those of every position')
    # empty if a variant computes attention in its own way
    if backends:
        print0('attention by ' + ', '.join(f'{way} ({why})' for way, why in sorted(backends)))


# -----------------------------------------------------------------------------
# evaluation

def evaluate(model, data, machine, split, batch_size, limit=0, it=0):
    """Returns the Evaluation (core/training/evaluation.py) of the model at iteration `it`.

    It reads fixed windows of the split: `limit` of them, or all if it is 0.
    """
    return launch_evaluation(model, data, machine, split, batch_size, limit, it)()


def launch_evaluation(model, data, machine, split, batch_size, limit, it, check=lambda: None):
    """Launches what evaluate() computes; returns a function that waits for the device and returns it.

    check() is called before each batch, and what it raises ends the evaluation.
    """
    it = torch.full((), float(it), device=machine.device)

    def forward(idx, stats):
        check()
        # without targets: a model that never sees them can neither use them nor choose its own loss
        logits, _ = model(idx, step=Step(it=it, stats=stats, all_positions=True))
        return logits # (B, T, vocab_size)
    model.eval()
    finish = evaluation.launch(forward, data, machine, split, batch_size, limit)
    model.train()
    return finish


def launch_evaluations(it, s, last, check):
    """Launches the evaluation of iteration `it`; returns a function that waits for the device.

    That returns the train split's loss, None unless it is the last evaluation or eval_train=always, and the
    validation split's Evaluation. check: as for launch_evaluation().
    """
    o = s.options
    args = s.model, s.data, s.machine
    curve_limit = (o.curve_iters or o.eval_iters) * o.batch_size
    val_limit = o.eval_iters * o.batch_size if last else curve_limit
    val = launch_evaluation(*args, 'val', o.batch_size, val_limit, it, check)
    if not last and o.eval_train == 'last':
        return lambda: (None, val())
    train_limit = curve_limit or s.data.count_windows('val')
    train = launch_evaluation(*args, 'train', o.batch_size, train_limit, it, check)
    return lambda: (train().loss, val())


def learning_rate(it, o):
    """Returns the learning rate of an iteration: linear warm-up, cosine (arXiv 1608.03983), then constant."""
    if not o.decay_lr:
        return o.learning_rate
    # warm-up, from just above 0 to learning_rate
    if it < o.warmup_iters:
        return o.learning_rate * (it + 1) / (o.warmup_iters + 1)
    # after the end of the cosine
    if it > o.lr_decay_iters:
        return o.min_lr
    # half a wave down, from learning_rate to min_lr
    done = (it - o.warmup_iters) / max(o.lr_decay_iters - o.warmup_iters, 1)
    coeff = 0.5 * (1.0 + math.cos(math.pi * done)) # from 1 to 0
    return o.min_lr + coeff * (o.learning_rate - o.min_lr)


# -----------------------------------------------------------------------------
# the loop

class StepLog:
    """Log lines of training iterations, and the clock that times them.

    An iteration's metrics are pending until the device has computed them; on CUDA, which is meanwhile given
    the next iteration.
    """

    def __init__(self, session, train_flops, progress, wandb_log):
        self.s, self.progress, self.wandb_log = session, progress, wandb_log
        # tokens an iteration, of all processes
        self.tokens = session.train_step.x.numel() * WORLD_SIZE
        self.train_flops, self.peak_flops = train_flops, session.machine.peak_flops()
        self.pending = None # (iteration, snapshot)
        self.start_clock(session.state['step'])

    def start_clock(self, it):
        """Restarts the clock before iteration `it`, so that an evaluation counts in no iteration's time."""
        self.t0, self.it0 = time.time(), it

    def add(self, it):
        """Starts to fetch the metrics of iteration `it`, to be logged by flush()."""
        self.pending = it, self.s.train_step.snapshot()

    def flush(self):
        """Waits for the pending iteration and logs it."""
        if self.pending is None:
            return
        (it, snapshot), self.pending = self.pending, None
        metrics = check_finite(self.s, snapshot)
        # a mean, where not every iteration is logged
        ms = 1000 * (time.time() - self.t0) / (it + 1 - self.it0)
        self.start_clock(it + 1)
        if MASTER_PROCESS:
            record = dict(iter=it, **metrics, lr=learning_rate(it, self.s.options), ms=ms)
            self.s.run.log(record)
            self.wandb_log(record)
            # model FLOPs utilisation: the share of the peak that the model's own products reach
            flops_per_second = self.train_flops * self.tokens / (ms / 1000)
            mfu = f', mfu {flops_per_second / (self.peak_flops * WORLD_SIZE):.1%}' if self.peak_flops else ''
            self.progress.update(it, f"loss {metrics['loss']:.4f}, {ms:.2f} ms{mfu}")


def check_finite(s, snapshot=None):
    """Returns the metrics of the snapshot's iteration, by default the last one.

    Stop, which says what was not finite, if a loss or gradient up to that iteration was not.
    """
    metrics, bad, bad_it = s.train_step.metrics(snapshot)
    # the step was not taken, so computing the iteration again finds what was wrong
    if bad:
        found = s.train_step.find_nonfinite(bad_it, *load_batch(s, bad_it))
        lr = learning_rate(bad_it, s.options)
        raise diverged(s, f'{found} is not finite (lr {lr:.3g})', bad_it, '--learning_rate or --grad_clip')
    return metrics


def diverged(s, found, it, remedy):
    """Returns the Stop of a run that diverged at iteration `it`; found and remedy go into its message."""
    return Stop(f'diverged at iteration {it}: {found}; the checkpoints in {s.run.out_dir} are untouched; '
                f'a lower {remedy} may help', DIVERGED)


def load_batch(s, it):
    """Returns an iteration's tokens and targets, (rows of this process, T) each."""
    rows = s.options.batch_size * s.options.gradient_accumulation_steps
    return s.data.batch('train', it, rows, s.options.seed, RANK, WORLD_SIZE)


def train(config, signals=None, is_script=False):
    """Trains a run to its end; returns (machine, data, model, its last Evaluation).

    This is a generator. It yields after it has launched an iteration or an evaluation, which the device may
    not have computed yet, and while its last checkpoint is written. A caller that drives several of these in
    turn trains several seeds at once: a small model leaves most of a GPU idle, and while one seed waits for
    the host, another computes.

    signals: those that the caller catches. Without, this catches them until it ends, and a second Ctrl-C raises
    KeyboardInterrupt, or exits at once if it is a script that trains.
    """
    session = setup(config)
    with nullcontext(signals) if signals else Signals(exits=is_script) as signals:
        try:
            judged = yield from train_loop(session, signals)
            return session.machine, session.data, session.model, judged
        finally:
            # however the run ends, a checkpoint that is being written is finished
            session.run.wait()


def train_loop(s, signals):
    """Yields after each iteration of Session s; evaluates, logs, saves and stops in between.

    Returns the last Evaluation of the validation split, None in processes that do not evaluate.
    """
    o, run, state, train_step = s.options, s.run, s.state, s.train_step
    first = state['step']
    # in a new run, or one that was stopped in an evaluation, or that measures something else from here
    unmeasured = state.get('val_loss') is None or state['best_val_loss'] is None
    if first > o.max_iters:
        raise Stop(f'max_iters={o.max_iters}: the run in {run.out_dir} is at iteration {first} already')
    classes = load_classes(o.variant)
    forward_flops, train_flops = flops_per_token(classes, s.model.config)
    tokens_per_iter = o.gradient_accumulation_steps * o.batch_size * s.model.config.block_size
    print0(f'variant {o.variant}, {s.model.get_num_params() / 1e6:.2f}M parameters, '
           f'{train_flops / 1e6:.1f}M FLOPs a token, {tokens_per_iter:,} tokens an iteration, '
           f'run folder {run.out_dir}')
    val = None
    if o.eval_only:
        if MASTER_PROCESS:
            train_loss, val = launch_evaluations(first, s, True, signals.check)()
            print0(losses_line(first, train_loss, val))
        return val

    # from here on the run folder is this run's
    wandb_log = lambda record: None
    if MASTER_PROCESS:
        with disk_errors(run.out_dir, 0):
            if not s.resumed and (previous := run.archive_previous()):
                print0(f'the run that was in {run.out_dir} is now in {previous}')
            # result.json means that a run is finished, and this one is not
            (run.out_dir / 'result.json').unlink(missing_ok=True)
        wandb_id = wandb_run_id(run.out_dir, s.resumed, o.wandb_log)
        run.write_json('config.json', describe_run(state, s.machine, classes) | dict(wandb_id=wandb_id))
        run.log_open(first)
        if o.wandb_log:
            wandb_log = wandb_logger(o.wandb_project, o.wandb_run_name, state['options'], wandb_id)
    progress = Progress(o.max_iters, first)
    step_log = StepLog(s, train_flops, progress, wandb_log)
    # a resumed run's seconds include those before it
    started = time.time() - state['seconds']
    saved_at = time.time()
    train_step.check = signals.check

    def save(it, val_loss, spaced=False):
        """Begins to save a checkpoint of iteration `it`, in the background, while the next iterations run.

        A spaced one is without the optimizer, and the run cannot go on from it.
        """
        nonlocal saved_at
        if name := train_step.find_nonfinite_state():
            raise diverged(s, f'its step left {name} not finite', max(it - 1, 0), '--learning_rate')
        tensors, rest = train_step.state()
        now = dict(val_loss=val_loss, seconds=time.time() - started, **rest)
        run.save_behind(it, model_tensors(s.model), None if spaced else tensors, state | now)
        saved_at = saved_at if spaced else time.time()

    # the loop ends with an evaluation after the last step, at max_iters
    for it in range(first, o.max_iters + 1):
        last = it == o.max_iters
        evaluating = it % o.eval_interval == 0 or last
        stopping = signals.stop_requested(s.machine.device, talk=it % o.log_interval == 0)
        checkpoint_due = stopping or time.time() - saved_at > 60 * o.checkpoint_minutes
        keeping = o.keep == 'log' and is_spaced(it)

        # log the previous iteration; nothing that is not finite may reach a checkpoint
        if evaluating or checkpoint_due or keeping or s.machine.type != 'cuda':
            step_log.flush()
        if it > first and (evaluating or checkpoint_due or keeping):
            check_finite(s)

        # evaluate
        finish = None
        if MASTER_PROCESS and evaluating:
            # the run that goes on from a checkpoint of this iteration evaluates again
            try:
                finish = launch_evaluations(it, s, last, signals.check)
            except Interrupted:
                stopping = checkpoint_due = True
        saving, val_loss = checkpoint_due, None
        if finish:
            yield
            train_loss, val = finish()
            val_loss = val.loss
            progress.line(losses_line(it, train_loss, val))
            if not math.isfinite(val_loss):
                raise diverged(s, f'the validation loss is {val_loss}', it, '--learning_rate')
            seconds = time.time() - started
            record = dict(iter=it, val_loss=val_loss, train_loss=train_loss, bits_per_byte=val.bits_per_byte,
                          seconds=seconds, **val.stats)
            run.log(record)
            wandb_log(record)
            improved = state['best_val_loss'] is None or val_loss < state['best_val_loss']
            if improved:
                state['best_val_loss'] = val_loss
            saving = improved and o.save_best or last or checkpoint_due or o.always_save_checkpoint
            # a resumed run already has the checkpoint it starts from, but perhaps without a loss
            saving = saving and (it > first or unmeasured)

        if MASTER_PROCESS and keeping:
            save(it, val_loss, spaced=True)
        if MASTER_PROCESS and saving:
            save(it, val_loss)
        if MASTER_PROCESS and evaluating:
            step_log.start_clock(it)

        # stop on request, or at the end
        if stopping:
            raise stopped(signals, it, o)
        if last:
            break

        # one training iteration; while the device works on it, log the previous one
        try:
            train_step(it, *load_batch(s, it), learning_rate(it, o))
        # between two micro-batches, before the weights have changed
        except Interrupted:
            step_log.flush()
            check_finite(s)
            save(it, None)
            raise stopped(signals, it, o) from None
        step_log.flush()
        if it % o.log_interval == 0:
            step_log.add(it)
        yield

    # the result, once the last checkpoint is on the disk
    if MASTER_PROCESS:
        yield
        run.wait()
        seconds, best = time.time() - started, state['best_val_loss']
        run.write_json('result.json', dict(
            val_loss=val_loss, bits_per_byte=val.bits_per_byte, train_loss=train_loss, best_val_loss=best,
            iters=o.max_iters, seconds=seconds,
            params=s.model.get_num_params(), flops_per_token=train_flops, forward_flops_per_token=forward_flops,
            peak_bytes=s.machine.peak_bytes(), variant=o.variant, seed=o.seed, data=state['data']))
        wandb_log(None)
        progress.close()
        print0(f'best val loss {best:.4f}, {seconds:.1f} s of training and evaluation; '
               f'python sample.py {naming(o)}')
    return val


def stopped(signals, it, o):
    """Returns the Stop of a run that a signal has stopped at iteration `it`."""
    return Stop(f'stopped by {signals.received.name} at iteration {it}, checkpoint in {o.out_dir}; '
                f'go on with --init_from=resume {naming(o)}', 128 + signals.received)


def naming(o):
    """Returns the options that name a run, and its variant if that is a file: no record says which code to run."""
    variant = f' --variant={o.variant}' if any(map(is_path, o.variant.split('+'))) else ''
    return f'--out_dir={o.out_dir}{variant}'


def losses_line(it, train_loss, val):
    """Returns a line with the train split's loss, if there is one, and the validation split's Evaluation."""
    losses = ([] if train_loss is None else [f'train loss {train_loss:.4f}']) + [f'val loss {val.loss:.4f}']
    if val.bits_per_byte is not None:
        losses.append(f'{val.bits_per_byte:.4f} bits per byte')
    return f'step {it}: ' + ', '.join(losses)


def main():
    end_with_torchrun()
    try:
        for _ in train(configure(Options, load_classes, say=print0), is_script=True):
            pass
        if dist.is_initialized():
            # the master still evaluates: a process that left now would break its connections
            dist.barrier()
    except RuntimeError as error:
        # gloo has no error class of its own
        if not (isinstance(error, dist.DistError) or dist.is_initialized() and 'gloo' in str(error)):
            raise
        raise Stop(f'process {RANK}: another process of this run has ended; go on with --init_from=resume',
                   128 + signal.SIGTERM) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == '__main__':
    code = 0
    try:
        run_main(main)
    except SystemExit as end:
        code = end.code
    if torch.cuda.is_initialized() or WORLD_SIZE > 1:
        # everything is on disk. Taking down graphs and compile workers would take seconds, and gloo's threads
        # sometimes abort a process whose interpreter finalizes while they run
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
