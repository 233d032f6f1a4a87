"""The report: every number is the report's, no text of a user's becomes markup, nothing is loaded, and no block is needed."""
import math

import numpy as np

from lab.stats import in_words, step_equivalents, study

HOSTILE = ['<script>alert(1)</script>', 'a&b"c', "x' onload='alert(2)", '</script><img src=x onerror=alert(3)>', '$_{\\frac', '_under',
           'a_very_long_name_of_an_arm_that_does_not_fit_in_any_column_of_a_phone', '\x1b[31mred\x00', '']
VOID = {'meta', 'input', 'br', 'img', 'link', 'hr'}


# -----------------------------------------------------------------------------
# reports like those of ab.py

def one_arm(rng, name, shift, seeds, ms, iters, base_noise):
    """An arm of a study: losses in nats that end at 1.47 + shift, and its price in ms a step."""
    final = 1.47 + shift + base_noise + 0.0012 * rng.standard_normal(len(seeds))
    fall = 2.7 * np.exp(-np.array(iters) / 260)
    val = final[:, None] + fall + 0.002 * rng.standard_normal((len(seeds), len(iters))) * (np.array(iters) < iters[-1])
    position = 1.42 + 1.6 / np.sqrt(np.arange(1, 257)) + shift * np.linspace(0, 2, 256) + 0.01 * rng.standard_normal(256)
    params = 10_646_784 + round(1e6 * abs(shift))
    return {
        'name': name, 'variant': name, 'baseline': name == 'base', 'options': {} if name == 'base' else {'window_init': 32.0},
        'params': params,
        'checks': {'status': 'ok', 'lines': ['suffix swap ok', 'row swap ok', 'decode equals one pass'], 'why': None},
        'price': {'step_ms': ms, 'step_ratio': ms / 5.9, 'forward_flops_per_token': 2.2e7 * ms / 5.9, 'flops_per_token': 6.6e7,
                  'flops_ratio': 1.0 + abs(shift), 'peak_bytes': int(1.1e9 * ms / 5.9), 'decode_tokens_per_s': 4100 / ms,
                  'compile_seconds': 21.3},
        'runs': [{'seed': s, 'status': 'done', 'reason': None, 'val_loss': float(x), 'best_val_loss': float(x) - 0.002, 'best_iter': 1750,
                  'train_loss': float(x) - 0.25, 'seconds': 33.0 + ms, 'init_hash': f'{s:04x}ab12', 'batch_hash': f'{s:04x}cd34'}
                 for s, x in zip(seeds, final)],
        'curve': {'iters': iters, 'val': val.tolist(), 'train': (val - 0.25 * np.array(iters) / iters[-1]).tolist(), 'seeds': seeds},
        'stats': None if name == 'base' else {'window': {'iters': iters, 'layers': [[32 + i * layer / 100 for layer in range(6)] for i in iters]},
                                              'gate_open': {'iters': iters, 'layers': [[0.5 + 0.01 * layer] * 6 for layer in range(len(iters))]}},
        'position_loss': position.tolist(),
        'loss_at_equal_time': {'loss': float(final.mean()) + 0.002, 'iters': round(2000 * 5.9 / ms)},
        'loss_at_equal_flops': {'loss': float(final.mean()), 'iters': 2000},
        'sample': f'{name.upper()}:\nWhat say you, <b>my lord</b>? & so\nIt shall be done.\n' * 6,
    }


def realistic(names=('base', 'soft_window', 'alibi', 'head_scaling'), n=5, seed=0):
    """What ab.py writes after a study of these arms: the first is the baseline, then one that helps, one that hurts, one unclear."""
    rng, seeds, iters = np.random.default_rng(seed), list(range(1, n + 1)), list(range(0, 2001, 250))
    noise, shifts = 0.003 * rng.standard_normal(n), [0, -0.0078, 0.009, -0.0012, 0.0001, 0.15, 0.002, -0.003, 0.001, 0.0005]
    arms = [one_arm(rng, name, shifts[i], seeds, 5.9 * (1 + 0.11 * i), iters, noise) for i, name in enumerate(names)]
    arms[0]['baseline'] = True
    result = study({arm['name']: {run['seed']: run['val_loss'] for run in arm['runs']} for arm in arms}) if n > 1 else None
    return {
        'name': 'char', 'command': f'python ab.py config/ab_shakespeare_char.py --variants={",".join(names[1:])} --seeds={n}',
        'created': '2026-11-22T03:00:00Z', 'config': 'config/ab_shakespeare_char.py',
        'plan': {'seeds': seeds, 'delta': 0.005, 'alpha': 0.05, 'looks': None, 'match': None,
                 'metric': 'final validation loss, whole split, nats per character'},
        'environment': {'device': 'NVIDIA H100 80GB HBM3', 'dtype': 'bfloat16', 'compile': True, 'git': 'a894131', 'data': 'sha256 9f2c',
                        'versions': {'torch': '2.11.0', 'numpy': '2.3.1', 'python': '3.12.4'}},
        'recipe': {'max_iters': 2000, 'batch_size': 64, 'block_size': 256, 'learning_rate': 1e-3, 'dropout': 0.2},
        'arms': arms,
        'comparisons': [{'arm': arm, **c, 'words': in_words(c, result), 'step_equivalents': step_equivalents(
            -c['mean'], iters, np.mean(arms[0]['curve']['val'], axis=0)),
            'text_interval': [c['mean'] - 0.0014, c['mean'] + 0.0016]} for arm, c in result['comparisons'].items()] if result else [],
        'paired': {'batches_equal': True, 'init_equal': True, 'note': ''},
    }


def troubled():
    """Hostile names, an arm with a failed and a diverged run, a declared leak, an unknown verdict, numbers that are none."""
    r = realistic(('base', *HOSTILE[:3], 'soft_window', 'far_off'))
    bad = r['arms'][4]
    bad['runs'][1] |= {'status': 'failed', 'reason': 'out of memory: <b>CUDA</b> tried to allocate', 'val_loss': None}
    bad['runs'][3] |= {'status': 'diverged', 'reason': 'loss NaN at iteration 800', 'val_loss': 'Infinity'}
    bad['curve']['val'][3][4:] = ['NaN'] * 5
    bad['curve']['val'][1] = bad['curve']['val'][1][:3]
    bad['checks'] = {'status': 'declared leak', 'lines': [], 'why': 'top-k over the sequence & <so>'}
    losses = {a['name']: {x['seed']: math.inf if x['status'] != 'done' else x['val_loss'] for x in a['runs']} for a in r['arms']}
    result = study(losses)
    r['comparisons'] = [{'arm': arm, **c, 'words': in_words(c, result)} for arm, c in result['comparisons'].items()]
    r['arms'][1]['options'] = {'<i>k</i>': '"><svg onload=alert(4)>'}
    r['arms'][1]['stats'] = {'</svg><script>': {'iters': [0, 1000, 2000], 'layers': [[1, 2], ['NaN', 3], [2, 'Infinity']]}}
    r['arms'][2]['sample'] = '</pre><script>alert(5)</script>' + HOSTILE[7]
    r['paired'] = {'batches_equal': False, 'init_equal': False, 'note': '<u>note</u>'}
    r['name'], r['command'] = '<h1>&', 'python ab.py "</script>" && rm <x>'
    return r


MINIMAL = {'arms': [{'name': 'base', 'baseline': True}]}
STUDIES = {'realistic': realistic, 'screen': lambda: realistic(n=3), 'troubled': troubled, 'many': lambda: realistic(
    ('base', *(f'variant_{i}' for i in range(9))), n=8), 'minimal': lambda: MINIMAL, 'empty': dict}
