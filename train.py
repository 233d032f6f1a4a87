"""Trains a GPT, or one of its variants, and keeps everything about the run in out_dir.

    python train.py config/train_shakespeare_char.py --variant=surprise
    python train.py --init_from=resume --out_dir=out-surprise
    torchrun --standalone --nproc_per_node=4 train.py config/train_gpt2.py
"""
import dataclasses
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

from model import Step, build, load_classes
from configurator import configure
from core.nn.attention import record_backends
from core.data.dataset import Dataset
from core.device.machine import machine
from core.run.environment import describe
from core.errors import DIVERGED, NO_CHECKPOINT, Stop, run as run_main
from core.device.flops import flops_per_token
from core.nn.gpt2_weights import SIZES as GPT2, pretrained
from configurator import Count, NonNegative, Rate, Whole, make_checked
from core.run.progress import Progress, wandb_logger
from core.run.folder import RunFolder, read_json
from core.training.train_step import TrainStep
from core.run.weights import load_weights, weights


@dataclass
class Options:
    # the defaults train GPT-2 (124M) on OpenWebText
    # I/O
    out_dir: str = 'out'                # run folder; out-<variant> when --variant is given without it
    eval_interval: Count = 2000         # iterations between evaluations
    log_interval: Count = 1             # iterations between log lines, the only ones that wait for the device
    eval_iters: Whole = 0               # batches an evaluation reads, spread over the split; 0: the whole split
    eval_only: bool = False             # evaluate once and stop
    always_save_checkpoint: bool = True # at every evaluation, and sample the newest; False: the best, and the newest now and then
    save_best: bool = True              # a checkpoint whenever validation improves; False: at the end, and every checkpoint_minutes
    checkpoint_minutes: NonNegative = 5.0 # no more than these are lost to a power cut
    init_from: str = 'scratch'          # scratch, resume (out_dir's newest checkpoint), or gpt2, gpt2-medium, gpt2-large, gpt2-xl
    # wandb
    wandb_log: bool = False             # log to Weights & Biases as well
    wandb_project: str = 'owt'          # its project
    wandb_run_name: str = 'gpt2'        # its run name
    # data
    dataset: str = 'openwebtext'        # a folder in data/, or the path of one
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
    lr_decay_iters: Whole = 600000      # the iteration at which the cosine ends, about max_iters (Chinchilla)
    min_lr: NonNegative = 6e-5          # the smallest, about learning_rate / 10 (Chinchilla)
    # system
    backend: Literal['auto', 'nccl', 'gloo'] = 'auto' # how processes under torchrun talk; auto: nccl on CUDA, else gloo
    device: str = 'auto'                # cpu, cuda, cuda:1, mps; auto: the best there is
    dtype: Literal['auto', 'float32', 'bfloat16', 'float16'] = 'auto' # of matrix products; bfloat16 on CUDA and AMX, else float32
    compile: Literal['auto', True, False] = 'auto' # torch.compile, and on CUDA one graph a step; auto: on CUDA
    seed: Whole = 1337                  # of the initial weights, the batches and the dropout


RANK, LOCAL_RANK, WORLD = (int(os.environ.get(name, default)) for name, default in
                           (('RANK', 0), ('LOCAL_RANK', 0), ('WORLD_SIZE', 1)))


def say(text):
    if RANK == 0:
        print(text, flush=True)


def out_dir_of(options, origin):
    """--out_dir; else out-<variant> when a variant is named, unless one config file names both; else the file's; else out."""
    by_hand = origin['out_dir'] == 'command line'
    same_file = origin['variant'].rsplit(':', 1)[0] == origin['out_dir'].rsplit(':', 1)[0]
    if by_hand or origin['variant'] == 'default' or same_file and origin['out_dir'] != 'default':
        return options.out_dir
    return f'out-{options.variant}'


def written(config_json):
    """What train.py wrote into a run's config.json, None where there is none."""
    saved = read_json(config_json)
    if saved is not None and not all(isinstance(saved.get(name), dict) for name in ('options', 'model_args', 'origin')):
        raise Stop(f'{config_json}: not what train.py writes; start another run with --init_from=scratch')
    return saved


def resumed(config, saved):
    """(options, model_args, origin): the saved run's under those given now, differences listed. Another model is refused."""
    old = saved['options'] | saved['model_args']
    now = {name: value for name, value in (dataclasses.asdict(config.options) | config.model_args).items()
           if config.origin[name] != 'default' and name not in ('init_from', 'out_dir')}
    for name, value in now.items():
        if value != old.get(name, value):
            if name == 'variant' or name in config.model_args and name not in ('dropout', 'attn_dropout', 'attn'):
                raise Stop(f'{name}={value}: the run to resume has {name}={old[name]}; start another with --init_from=scratch')
            say(f'{name}: {old[name]} before, {value} from here')
    options = {name: now.get(name, saved['options'].get(name, value)) for name, value in dataclasses.asdict(config.options).items()}
    return (Options(**options | dict(init_from=saved['options']['init_from'])),
            saved['model_args'] | {name: now[name] for name in config.model_args},
            saved['origin'] | {name: config.origin[name] for name in now})


def learning_rate(it, o):
    if not o.decay_lr:
        return o.learning_rate
    if it < o.warmup_iters:
        return o.learning_rate * (it + 1) / (o.warmup_iters + 1)
    if it > o.lr_decay_iters:
        return o.min_lr
    done = (it - o.warmup_iters) / max(o.lr_decay_iters - o.warmup_iters, 1)
    return o.min_lr + 0.5 * (1.0 + math.cos(math.pi * done)) * (o.learning_rate - o.min_lr)


@torch.no_grad()
def evaluate(model, data, machine, split, batch_size, limit=0, it=0):
    """Mean cross entropy in nats over the split's fixed windows (limit of them, 0: all), and the means of step.stats a layer."""
    model.eval()
    losses, counts, stats = [], [], {}
    step_it = torch.tensor(float(it), device=machine.device)
    for x, y, n in data.windows(split, batch_size, limit):
        step = Step(it=step_it, stats={})
        with machine.autocast():
            losses.append(model(x, y, step)[1].float())
        counts.append(n)
        for name, layers in step.stats.items():
            stats.setdefault(name, []).append(torch.stack([t.float().mean() for t in layers]))
    model.train()
    counts = torch.tensor(counts, dtype=torch.float64)
    loss = (torch.stack(losses).cpu().double() @ counts / counts.sum()).item()
    return loss, {f'stats.{name}': torch.stack(rows).mean(0).tolist() for name, rows in stats.items()}


class Signals:
    """SIGINT, SIGTERM and SIGUSR1 (SLURM) ask for a stop at the next iteration; the second one stops at once."""

    def __init__(self):
        self.got = None
        for name in ('SIGINT', 'SIGTERM', 'SIGUSR1'):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self.handle)

    def handle(self, number, frame):
        if self.got:
            os._exit(128 + number)
        self.got = signal.Signals(number)


def start(config):
    """Everything before the loop: (options, run, machine, data, model, update, the checkpoint's state or a new one)."""
    o, model_args, origin, saved, tensors, optim = config.options, dict(config.model_args), config.origin, None, None, None
    run = RunFolder(out_dir_of(o, config.origin))
    if RANK == 0 and not o.eval_only:
        run.lock()
    if o.init_from == 'resume':
        if run.checkpoints():
            saved, tensors, optim = run.load('latest')
        elif (saved := written(run.out_dir / 'config.json')) is not None:
            say(f'{run.out_dir} has no checkpoint yet: its run starts over')
        else:
            raise Stop(f'init_from=resume: {run.out_dir} holds no run', NO_CHECKPOINT)
        o, model_args, origin = resumed(config, saved)
    o = dataclasses.replace(o, out_dir=str(run.out_dir))
    local = WORLD > 1 and o.device in ('auto', 'cuda') and torch.cuda.is_available()
    m = machine(f'cuda:{LOCAL_RANK}' if local else o.device, o.dtype, o.compile)
    if o.gradient_accumulation_steps % WORLD:
        raise Stop(f'gradient_accumulation_steps={o.gradient_accumulation_steps}: must be a multiple of the {WORLD} processes')
    if WORLD > 1:
        backend = ('nccl' if m.type == 'cuda' else 'gloo') if o.backend == 'auto' else o.backend
        dist.init_process_group(backend, device_id=torch.device(m.device) if backend == 'nccl' else None)
    say(f"device {m.name}, {m.dtype}, {'compiled' if m.compile else 'eager'}{f', {WORLD} processes' if WORLD > 1 else ''}")

    if o.init_from not in ('scratch', *GPT2):
        raise Stop(f"init_from={o.init_from}: allowed: scratch, resume, {', '.join(GPT2)}")
    block_size = make_checked(load_classes(o.variant).GPTConfig, model_args).block_size
    data = Dataset(o.dataset, block_size, m.device)
    if saved is not None and saved['tokenizer'] != data.tokenizer.meta:
        raise Stop(f'dataset={o.dataset}: its tokens are not those that the run to resume was trained on')
    if saved is not None and saved['data'] != data.hash:
        say(f'dataset {o.dataset}: its text is not the one before')
    if data.vocab_size > model_args.setdefault('vocab_size', data.vocab_size):
        raise Stop(f"vocab_size={model_args['vocab_size']}: data/{o.dataset} has {data.vocab_size} tokens")
    if o.init_from in GPT2 and tensors is None:
        model = pretrained(o.init_from, o.variant, o.seed, model_args)
    else:
        model = build(o.variant, o.seed, **model_args)
    if tensors is not None:
        load_weights(model, tensors)
    model.to(m.device).eval()
    with torch.no_grad(), m.autocast(), record_backends(model.transformer.h[0].attn.attn_dropout) as ways:
        model(torch.zeros(o.batch_size, block_size, dtype=torch.long, device=m.device)) # refuses before anything is written
    if ways: # a variant may have a way of its own
        say(f"attention by {', '.join(sorted(ways))}")
    model.train()
    optimizer = model.configure_optimizers(o.weight_decay, o.learning_rate, (o.beta1, o.beta2), m.type, o.optimizer)
    shape = o.gradient_accumulation_steps // WORLD, o.batch_size, block_size
    update = TrainStep(model, optimizer, m, shape, o.grad_clip, o.seed, RANK, WORLD)
    if tensors is not None:
        update.load_state(optim, saved['scaler'])
    state = saved if tensors is not None else dict(step=0, best_val_loss=None, seconds=0.0)
    state = state | dict(options=dataclasses.asdict(o), model_args=dataclasses.asdict(model.config), origin=origin,
                         tokenizer=data.tokenizer.meta, data=data.hash)
    return o, run, m, data, model, update, state


def train(config, signals=None):
    """The whole run, as a generator that yields after each iteration, whose work a device may still have before it: who drives
    several of them trains several seeds at once. Returns (machine, data, model)."""
    _, run, *_ = begun = start(config)
    try:
        return (yield from loop(config, signals, *begun))
    finally:
        run.wait() # however it ended: for the checkpoint that is being written


def loop(config, signals, o, run, m, data, model, update, state):
    """train() once everything is there; arguments are start()'s."""
    main, signals, first = RANK == 0, signals or Signals(), state['step']
    if first > o.max_iters:
        raise Stop(f'max_iters={o.max_iters}: the run in {run.out_dir} is at iteration {first} already')
    rows, block_size = o.batch_size * o.gradient_accumulation_steps, model.config.block_size
    classes = load_classes(o.variant)
    forward_flops, train_flops = flops_per_token(model.config, classes)
    peak_flops = m.peak_flops()
    say(f'variant {o.variant}, {model.num_params() / 1e6:.2f}M parameters, {train_flops / 1e6:.1f}M FLOPs a token, '
        f'{rows * block_size:,} tokens an iteration, run folder {run.out_dir}')
    if o.eval_only:
        return report_losses(*losses_at(first, o, m, data, model)[:2]) if main else None
    track = lambda record: None
    if main:
        if config.options.init_from != 'resume' and run.fresh():
            say(f'the run that was in {run.out_dir} is now in {run.out_dir}/previous')
        (run.out_dir / 'result.json').unlink(missing_ok=True) # it says that a run is finished
        run.write_json('config.json', describe(state, m, classes))
        run.log_open(first)
        if o.wandb_log:
            track = wandb_logger(o.wandb_project, o.wandb_run_name, state['options'])
    show, saved_at, began = Progress(o.max_iters, first), time.time(), time.time() - state['seconds']
    batch = lambda it: data.batch('train', it, rows, o.seed, RANK, WORLD) # (rows of this process, T) twice

    def save(it, val_loss=None):
        nonlocal saved_at
        tensors, scaler = update.state()
        run.save_behind(it, weights(model), tensors, state | dict(val_loss=val_loss, scaler=scaler, seconds=time.time() - began))
        saved_at = time.time()

    def look(snapshot=None):
        """The numbers of the last iteration, or the snapshot's; ends the run if a loss or gradient up to it was not finite."""
        numbers, bad, bad_it = update.numbers(snapshot)
        if bad:
            blame = update.first_bad(*batch(bad_it))
            raise Stop(f'diverged at iteration {bad_it}: {blame} is not finite (lr {learning_rate(bad_it, o):.3g}); the '
                       f'checkpoints in {run.out_dir} are untouched; a lower --learning_rate or --grad_clip may help', DIVERGED)
        return numbers

    def report(it, snapshot):
        """Logs iteration `it`."""
        nonlocal mark, marked
        numbers = look(snapshot)
        ms, mark, marked = 1000 * (time.time() - mark) / (it + 1 - marked), time.time(), it + 1
        if main:
            record = dict(iter=it, **numbers, lr=learning_rate(it, o), ms=ms)
            run.log(record)
            track(record)
            mfu = peak_flops and train_flops * rows * block_size / (ms / 1000) / (peak_flops * WORLD)
            show.update(it, f"loss {numbers['loss']:.4f}, {ms:.2f} ms{f', mfu {mfu:.1%}' if mfu else ''}")

    mark, marked, unseen = time.time(), first, None
    for it in range(first, o.max_iters + 1):
        evaluating, last = it % o.eval_interval == 0 or it == o.max_iters, it == o.max_iters
        stopping = stop_asked(signals, it, o)
        due = stopping or time.time() - saved_at > 60 * o.checkpoint_minutes
        if unseen and (evaluating or due or m.type != 'cuda'):
            report(*unseen)
            unseen = None
        if it > first and (evaluating or due):
            look()
        if main and evaluating:
            train_loss, val_loss, stats = losses_at(it, o, m, data, model)
            report_losses(train_loss, val_loss, it, show)
            if not math.isfinite(val_loss):
                raise Stop(f'diverged at iteration {it}: the validation loss is {val_loss}; the checkpoints in {run.out_dir} are '
                           'untouched; a lower --learning_rate may help', DIVERGED)
            record = dict(iter=it, val_loss=val_loss, train_loss=train_loss, seconds=time.time() - began, **stats)
            run.log(record)
            track(record)
            better = state['best_val_loss'] is None or val_loss < state['best_val_loss']
            state['best_val_loss'] = val_loss if better else state['best_val_loss']
            if (better and o.save_best or last or due or o.always_save_checkpoint) and (it > first or first == 0):
                save(it, val_loss)
            mark, marked = time.time(), it
        elif main and due:
            save(it)
        if stopping:
            raise Stop(f'stopped by {signals.got.name} at iteration {it}, checkpoint in {run.out_dir}; go on with '
                       f'--init_from=resume --out_dir={run.out_dir}', 128 + signals.got)
        if last:
            break
        update(it, *batch(it), learning_rate(it, o))
        if unseen:
            report(*unseen) # while the device works on the iteration after it
        unseen = (it, update.snapshot()) if it % o.log_interval == 0 else None
        yield
    if main:
        run.wait()
        seconds, best = time.time() - began, state['best_val_loss']
        run.write_json('result.json', dict(
            val_loss=val_loss, train_loss=train_loss, best_val_loss=best, iters=o.max_iters, seconds=seconds,
            params=model.num_params(), flops_per_token=train_flops, forward_flops_per_token=forward_flops,
            peak_bytes=m.peak_bytes(), variant=o.variant, seed=o.seed, data=state['data']))
        track(None)
        say(f'best val loss {best:.4f}, {seconds:.1f} s of training and evaluation; python sample.py --out_dir={run.out_dir}')
    return m, data, model


def losses_at(it, o, m, data, model):
    """(train loss, val loss, the variant's statistics). The train split is read in as many windows as the validation split."""
    limit = o.eval_iters * o.batch_size
    train_loss, _ = evaluate(model, data, m, 'train', o.batch_size, limit or data.count_windows('val'), it)
    return train_loss, *evaluate(model, data, m, 'val', o.batch_size, limit, it)


def report_losses(train_loss, val_loss, it=0, show=None):
    (show.line if show else say)(f'step {it}: train loss {train_loss:.4f}, val loss {val_loss:.4f}')


def stop_asked(signals, it, o):
    """Whether a signal came, here or, at log lines, in any process."""
    if WORLD == 1:
        return signals.got is not None
    if it % o.log_interval:
        return False
    got = torch.tensor(int(signals.got or 0), device=f'cuda:{LOCAL_RANK}' if dist.get_backend() == 'nccl' else 'cpu')
    dist.all_reduce(got, dist.ReduceOp.MAX)
    signals.got = signals.got or (signal.Signals(int(got)) if got else None)
    return signals.got is not None


def main():
    try:
        for _ in train(configure(Options, load_classes, say=say)):
            pass
        if dist.is_initialized():
            dist.barrier() # a process that leaves while another still evaluates takes its connections along
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == '__main__':
    run_main(main)
    if torch.cuda.is_initialized() or WORLD > 1:
        # everything is on disk; taking down graphs and compile workers takes 3 to 7 s, and gloo's threads now and then abort
        # a process that finalizes the interpreter under them (4 of 40 runs; none of 60 this way)
        sys.stdout.flush()
        os._exit(0)
