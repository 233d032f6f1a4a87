"""Samples from a trained model: python sample.py --out_dir=out-surprise --start="ROMEO:" """
if __name__ == '__main__':
    # before PyTorch, whose import takes seconds
    from core.errors import exit_on_interrupt
    exit_on_interrupt()

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch

from configurator import Count, DeviceOptions, FilePath, NonNegative, Share, Whole, configure, construct_checked
from core.data.tokenizer import Tokenizer
from core.device.machine import machine
from core.errors import NO_CHECKPOINT, Stop, printable, run_main
from core.rng import key
from core.run.checkpoint import load_model_tensors
from core.run.folder import RunFolder
from core.run.resume import check_fits, check_named, check_state, unusable
from model import build, build_gpt2, load_classes


@dataclass
class Options(DeviceOptions):
    out_dir: FilePath = 'out'           # run folder
    ckpt: str = 'auto'                # best, latest, or a step; auto: as always_save_checkpoint says, False means best
    variant: str = 'base'               # only of a run whose variant is a file: its path, which you thereby trust
    init_from: str = 'resume'           # resume reads out_dir; or gpt2, gpt2-medium, gpt2-large, gpt2-xl
    start: str = '\n'                   # the text to go on from; FILE:prompt.txt reads a file
    num_samples: Count = 10             # samples to draw, all in one batch
    max_new_tokens: Count = 500         # tokens of each
    temperature: NonNegative = 0.8      # below 1 less random, above 1 more; 0: always the likeliest token
    top_k: Whole = 200                  # only the top_k likeliest tokens; 0: all
    top_p: Annotated[float, '(0, 1]'] = 1.0 # only the likeliest tokens that together hold this probability; 1: all
    min_p: Share = 0.0                  # only tokens at least min_p times as likely as the likeliest; 0: all
    seed: Whole = 1337                  # the same seed, the same samples
    dtype: Literal[
        'auto', 'float32', 'bfloat16', 'float16'] = 'auto' # of matrix products; auto: bfloat16 on CUDA, else float32
    compile: Literal['auto', True, False] = 'auto' # accepted for nanoGPT's sake; decoding runs eagerly


def open_run(out_dir, ckpt='auto', device='auto', dtype='auto', variant='base'):
    """Returns (model, tokenizer, machine, state) from a checkpoint of a run folder; Stop if it has none.

    variant: the run's, which must be given if it is a file, because its code runs. The model is in eval mode on
    the machine's device; state is what the checkpoint says besides its tensors.
    """
    run = RunFolder(out_dir)
    if not run.checkpoints() and not run.spaced():
        advice = run.nanogpt_checkpoint() or f'; train first: python train.py ... --out_dir={out_dir}'
        raise Stop(f'out_dir={out_dir}: holds no checkpoint{advice}', NO_CHECKPOINT)
    state, tensors, _ = run.load('latest' if ckpt == 'auto' else ckpt, optim=False)
    # always_save_checkpoint=False means that a run keeps its best, so sample that
    if ckpt == 'auto' and isinstance(state.get('options'), dict) and not state['options'].get('always_save_checkpoint'):
        state, tensors, _ = run.load('best', optim=False)
    m = machine(device, dtype, decoding=True)
    # it may be a stranger's
    with unusable(run.ckpt):
        check_state(state, tensors)
    check_named(state['options']['variant'], variant)
    with unusable(run.ckpt):
        classes = load_classes(state['options']['variant'])
        config = construct_checked(classes.GPTConfig, state['model_args'])
        check_fits(lambda: classes.GPT(config, classes), config, tensors)
        model = build(state['options']['variant'], **state['model_args'])
    load_model_tensors(model, tensors)
    model.schedule_iters = state['options'].get('lr_decay_iters')
    return model.to(m.device).eval(), Tokenizer.from_meta(state['tokenizer']), m, state


def main():
    # stdout is for the samples alone
    config = configure(Options, say=say)
    o = config.options

    # a model that train.py made, or OpenAI's
    if o.init_from == 'resume':
        model, tokenizer, m, state = open_run(o.out_dir, o.ckpt, o.device, o.dtype, o.variant)
    else:
        m, state = machine(o.device, o.dtype, decoding=True), dict(step=0)
        model = build_gpt2(o.init_from, seed=o.seed).to(m.device).eval()
        tokenizer = Tokenizer.from_meta(dict(kind='gpt2', vocab_size=50257))

    # the prompt, the same for every sample; a model needs at least one token
    given = '' if config.origin['start'] == 'default' else read_start(o.start)
    prompt = tokenizer.encode(given) or tokenizer.start()
    if not given and (first := tokenizer.decode(prompt)) != '\n':
        say(f'this set has no line break, so the samples go on from {first!r}')
    T = model.config.block_size
    if len(prompt) > T:
        say(f'start has {len(prompt):,} tokens, of which the model sees the last {T:,}')
    idx = torch.tensor([prompt[-T:]] * o.num_samples, device=m.device) # (num_samples, at most T)
    # a variant's schedule stays at the iteration of the checkpoint
    generator = torch.Generator(m.device).manual_seed(key(o.seed, 'sample'))
    it = torch.tensor(float(state['step']), device=m.device)

    # on a terminal the first sample appears token by token
    live = sys.stdout.isatty()
    shown, decode = printable if live else str, tokenizer.decoder()
    if live:
        print(shown(decode(prompt)), end='', flush=True)
    new = []
    with m.precision():
        for token in model.stream(idx, o.max_new_tokens, o.temperature, o.top_k, o.top_p, o.min_p,
                                  generator, it, tokenizer.known):
            new.append(token) # (num_samples, 1)
            if live:
                print(shown(decode(token[0].tolist())), end='', flush=True)

    # all samples, the first only if it is not on the screen yet
    rows = torch.cat(new, dim=1).tolist() # num_samples lists of max_new_tokens ids
    for n, row in enumerate(rows):
        text = '' if live and n == 0 else tokenizer.decode(prompt + row)
        print(shown(text), end='\n---------------\n')


def say(text):
    print(text, file=sys.stderr, flush=True)


def read_start(start):
    """Returns the text to go on from: `start` itself, or the content of the file that FILE: names."""
    if not start.startswith('FILE:'):
        return start
    path = Path(start.removeprefix('FILE:')).expanduser()
    try:
        return path.read_text(encoding='utf-8-sig')
    except OSError as error:
        raise Stop(f'start={start}: {error.strerror}') from None
    except UnicodeDecodeError:
        raise Stop(f'start={start}: is not UTF-8 text') from None
    # a path with a NUL
    except ValueError as error:
        raise Stop(f'start={start}: {error}') from None


if __name__ == '__main__':
    run_main(main)
