"""What a variant costs beside the baseline: time, memory, parameters, FLOPs and decoding speed.

    python bench.py --variants=surprise,soft_window
    python bench.py --variants=soft_window --block_size=1024 --n_embd=768 --n_head=12 --n_layer=12 --batch_size=16
    python bench.py --variants=hard_window --module --block_size=4096 --n_embd=768 --n_head=12 --batch_size=4
    python bench.py --variants=surprise --check

All arms are timed in one process in turn, because machines drift. Times are medians of the rounds; ratios are
medians of each round's ratio to the baseline, with 95 % intervals.
With --check nothing is timed: small models on the CPU show whether a variant sees the future or other rows,
in half a minute or so. With --module the attention module of one layer is timed alone.
"""
if __name__ == '__main__':
    # before PyTorch, whose import takes seconds
    from core.errors import exit_on_interrupt
    exit_on_interrupt()

import json
import sys
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Literal

import torch

from configurator import Count, DeviceOptions, Positive, Whole, configure, expand_flags
from core.assemble import short_name
from core.device.cuda_graph import GraphPool
from core.device.machine import machine
from core.errors import Stop, run_main
from core.run.environment import versions
from lab import checks
from lab.timing import TimedAttention, TimedModel, interleave, ratio_text
from model import GPTConfig, load_classes


@dataclass
class Options(DeviceOptions):
    variants: str = ''                  # what to time beside the baseline: a,b,a+b
    batch_size: Count = 64              # rows a step
    rounds: Count = 10                  # timings of each arm, in turn; intervals need 6
    seconds: Positive = 0.1             # about how long one timing takes
    decode_tokens: Count = 200          # tokens to decode, one row, with the cache
    peak_tflops: Positive | None = None # the device's dense peak in this dtype, for MFU; None: core/device/machine.py's
    optimizer: Literal['adamw', 'muon'] = 'adamw' # of the steps
    seeds: Count = 1                    # also time the steps of this many seeds at once, as ab.py trains them
    seed: Whole = 1337                  # of the weights and the tokens
    module: bool = False                # time the first layer's attention module alone, forward and backward
    check: bool = False # look for leaks, and whether it decodes as it evaluates, instead; exit code 2 if so


@dataclass
class GPTConfig(GPTConfig):
    block_size: Count = 256             # the model of config/train_shakespeare_char.py
    vocab_size: Count = 65
    n_layer: Count = 6
    n_head: Count = 6
    n_embd: Count = 384


# -----------------------------------------------------------------------------
# the options of all variants at once

def union_config(variants):
    """Returns a loader for configure(), whose one GPTConfig has the options of all these variants."""
    # the baseline's config is the GPTConfig above, with this script's sizes
    configs = dict.fromkeys(load_classes(v).GPTConfig for v in variants)
    # a variant without options of its own has it too
    del configs[load_classes('base').GPTConfig]
    if not configs:
        return lambda variant: SimpleNamespace(GPTConfig=GPTConfig)
    # with the class above first, its defaults win over those of model.py
    union = dataclass(type('GPTConfig', (GPTConfig, *configs), {'__doc__': GPTConfig.__doc__}))
    return lambda variant: SimpleNamespace(GPTConfig=union)


# -----------------------------------------------------------------------------
# tables

def model_table(results):
    """Returns TimedModel's results as an aligned table."""
    head = ['variant', 'params', 'MFLOPs/token', 'step ms', 'tokens/s', 'peak MiB', 'MFU', 'decode tok/s']
    rows = [head]
    for r in results:
        rows.append([short_name(r['variant']),
                     f"{r['params'] / 1e6:.2f}M",
                     f"{r['flops_per_token'] / 1e6:.1f}",
                     f"{r['step_ms']:.2f}",
                     f"{r['tokens_per_s']:,.0f}",
                     f"{r['peak_bytes'] / 2**20:,.0f}" if r['peak_bytes'] else '-',
                     f"{r['mfu']:.1%}" if r['mfu'] else '-',
                     f"{r['decode_tokens_per_s']:,.0f}"])
    return aligned(rows)


def ratio_table(results):
    """Returns TimedModel's times as an aligned table: the baseline's in ms, then ratios to them."""
    columns = dict(forward='forward', forward_backward='fwd+bwd', step='step')
    # only with --seeds above 1
    if results[0]['seeds'] > 1:
        columns['seeds_step'] = f"step of {results[0]['seeds']} seeds"
    base, *others = results
    rows = [['over base', *columns.values()],
            ['base, ms', *(f"{base[f'{name}_ms']:.2f}" for name in columns)]]
    for r in others:
        ratios = [ratio_text(r[f'{name}_ratio'], r[f'{name}_ratio_interval']) for name in columns]
        rows.append([short_name(r['variant']), *ratios])
    return aligned(rows)


def attention_table(results):
    """Returns TimedAttention's results as an aligned table; time and memory come with their ratios."""
    base = results[0]
    rows = [['variant', 'attention by', 'fwd+bwd ms', 'over base', 'peak MiB']]
    for r in results:
        ratio = '' if r is base else ratio_text(r['ratio'], r['ratio_interval'])
        mebibytes = f"{r['peak_bytes'] / 2**20:,.0f}" if r['peak_bytes'] else '-'
        if r['peak_bytes'] and r is not base:
            mebibytes += f" ({r['peak_bytes'] / base['peak_bytes']:.2f}x)"
        rows.append([short_name(r['variant']), ', '.join(r['attention']), f"{r['ms']:.3f}", ratio, mebibytes])
    return aligned(rows)


def aligned(rows):
    """Returns rows of cells as text: the first column is flush left, the others are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        lines.append('  '.join(cells))
    return '\n'.join(lines)


# -----------------------------------------------------------------------------

def check(variants, model_args):
    """Prints a line for each check of each variant; raises Stop with the first failure once all have run.

    model_args: {option: value}, those of all variants.
    """
    first_failure = None
    # in the model that is timed, the variant must do something; else checks choose the sizes
    sizes = {f.name: model_args.get(f.name, f.default) for f in fields(GPTConfig)}
    for variant in variants:
        # a variant keeps the options that are its own
        own = {f.name for f in fields(load_classes(variant).GPTConfig)} - {f.name for f in fields(GPTConfig)}
        options = {name: value for name, value in model_args.items() if name in own}
        for c in checks.run_suite(variant, base_args=sizes if variant != 'base' else None, **options):
            print(f'{short_name(variant):<20} {c.name:<60} {c.status:<20} {c.seconds:6.1f} s', flush=True)
            if c.why and first_failure is None:
                first_failure = f'{short_name(variant)}: {c.name}: {c.why}'
    if first_failure:
        raise Stop(first_failure)


def main():
    """Times the variants beside the baseline, or checks them with --check."""
    # --variants is read first, because it decides which other options exist
    argv = expand_flags(sys.argv[1:], Options)
    naming_variants = [arg for arg in argv if arg.startswith('--variants=')]
    names = configure(Options, say=lambda text: None, argv=naming_variants).options.variants
    variants = ['base', *(v for v in names.split(',') if v)]
    if len(set(variants)) < len(variants):
        raise Stop(f'variants={names}: base is always there, and each variant is named once')
    config = configure(Options, union_config(variants), argv)
    o = config.options
    if o.check:
        return check(variants[1:] or variants, config.model_args)

    # all arms are built before any is timed, so that they can take turns
    m = machine(o.device, o.dtype, o.compile)
    if m.compile:
        # Dynamo keeps 8 versions of a function by default, and every variant compiles the same one
        torch._dynamo.config.recompile_limit = 8 * len(variants)
    # config.model_args has only what the user set; the other sizes are those of GPTConfig above
    sizes = 'block_size', 'vocab_size', 'n_layer', 'n_head', 'n_embd'
    model_args = {name: getattr(GPTConfig, name) for name in sizes} | config.model_args
    pool = GraphPool() if m.type == 'cuda' else None
    if o.module:
        timed = [TimedAttention(v, m, model_args, o.batch_size, o.seed, pool) for v in variants]
    else:
        timed = [TimedModel(v, m, model_args, o.batch_size, o.decode_tokens, o.optimizer, o.seed, o.seeds, pool)
                 for v in variants]
    # all rounds of one kind of call before the next kind: decoding hardly warms a GPU, so the model timed
    # right after it would run at a higher clock than the others
    for call in timed[0].samples:
        interleave(timed, call, o.seconds, o.rounds)

    # tables for people, then one line of JSON for programs
    peak = o.peak_tflops * 1e12 if o.peak_tflops else m.peak_flops()
    results = [one.result(peak, timed[0]) for one in timed]
    mode = 'compiled' if m.compile else 'eager'
    no_mfu = '' if peak or o.module else '; no MFU: give --peak_tflops'
    print(f'\n{m.name}, {m.dtype}, {mode}, batch {o.batch_size} x {timed[0].config.block_size}{no_mfu}')
    print(attention_table(results) if o.module else f'{model_table(results)}\n\n{ratio_table(results)}')
    record = dict(device=m.name, dtype=m.dtype, compile=m.compile, versions=versions(), results=results)
    print(json.dumps(record))


if __name__ == '__main__':
    run_main(main)
