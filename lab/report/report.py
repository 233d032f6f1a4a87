"""What ab.py found, for people: report.html, one file that opens anywhere, and its figures as PNGs.

The input is report.json as a dict. Blocks of it may be missing or None, as in a study of losses that somebody brings, and NaN
and Infinity come as strings: read() takes care of both, for lab.report.figures too. Texts come from users: see el().
"""
import json
import re
from math import isfinite
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from lab.report import figures
from lab.report.figures import Raw, dec, el, minus, si
from lab.stats import MIN_SEEDS

WORDS = {'better': 'helps', 'worse': 'hurts', 'screen': 'screen only'} # lab.stats' verdicts as an answer to "does it help?"
COSTS = {   # field of arm['price']: title, its ratio's field, the number in words
    'step_ms': ('ms a step', 'step_ratio', lambda x: f'{x:.3g}' if x < 1000 else f'{x:.0f}'),
    'forward_flops_per_token': ('forward FLOPs a token', None, si),
    'flops_per_token': ('training FLOPs a token', 'flops_ratio', si),
    'params': ('parameters', None, si),
    'peak_bytes': ('peak memory', None, lambda x: f'{x / 2 ** 20:,.0f} MiB'),
    'decode_tokens_per_s': ('tokens/s decoding', None, lambda x: f'{x:,.0f}'),
    'compile_seconds': ('s to compile', None, lambda x: f'{x:.3g}'),
}
EQUAL = {'loss_at_equal_time': "loss at the baseline's time", 'loss_at_equal_flops': "loss at the baseline's FLOPs"}
MATCHED = {'params': 'the same number of parameters', 'flops': 'the same training FLOPs', 'time': 'the same training time'}

# -----------------------------------------------------------------------------
# reading the report

def tidy(x):
    """What is no finite number, as a float or as json's word for it, becomes None: what cannot be drawn is as good as missing."""
    if isinstance(x, dict):
        return {key: v if key in ('name', 'options', 'sample') else tidy(v) for key, v in x.items()}
    if isinstance(x, list):
        return [tidy(v) for v in x]
    return None if x in ('NaN', 'Infinity', '-Infinity') or isinstance(x, float) and not isfinite(x) else x


def block(given, **blank):
    """A dict as attributes, with these for what is missing or None."""
    return SimpleNamespace(**blank | {key: v for key, v in (given or {}).items() if v is not None})


def read(report):
    """report.json with every block there, so that nothing below has to ask: r.arms, r.base, r.plan, and r.verdicts."""
    r = block(report, name='A/B report', command='', created='', config='', arms=[], comparisons=[], plan={}, environment={},
              recipe={}, paired={})
    r.paired = block(r.paired, batches_equal=True, init_equal=True, note='')
    r.comparisons = [compared(c) for c in tidy(r.comparisons)]
    r.arms = [read_arm(arm, color) for color, arm in enumerate(tidy(r.arms))]
    r.base = next((arm for arm in r.arms if arm.baseline), None)
    for arm in r.arms:
        arm.costs = {key: cost(arm, r.base, key) for key in COSTS}
    r.plan = p = block(tidy(r.plan), seeds=[], delta=0, alpha=0.05, looks=None, metric='final validation loss, nats', match='none',
                       lr_sweep={})
    told = [c.level for c in r.comparisons if c.level] # at several looks stricter than alpha
    p.level = told[0] if told else None if p.looks else p.alpha
    p.percent = f'{100 * (1 - p.level):.3g} % ' if p.level else ''
    r.verdicts = list(verdicts(r))
    return r


def verdicts(r):
    """(arm, comparison, title, verdict) in the order of the arms. An arm with a baseline of its own, as of the same number of
    parameters, has two; an arm without any has a blank one."""
    others = {c.baseline for c in r.comparisons} - {None, r.base.name if r.base else None}
    for arm in r.arms:
        for c in [c for c in r.comparisons if c.arm == arm.name] or [compared({})]:
            title = f'{arm.name} against {c.baseline}' if c.baseline in others else arm.name
            yield arm, c, title, 'baseline' if arm is r.base else 'matched baseline' if arm.name in others else c.verdict


def compared(given):
    """One of report['comparisons']. why: what its words say beyond the verdict and the difference."""
    numbers = 'n wins mean sd rho mde p holm_p flip_p p_improve step_equivalents level interval text_interval'.split()
    c = block(given, arm=None, baseline=None, verdict='no verdict', words='', **dict.fromkeys(numbers))
    for name in 'interval', 'text_interval':
        if None in (vars(c)[name] or []):
            setattr(c, name, None)
    first, *rest = re.sub(r'(?<!\d)\.(?=\d)', '0.', c.words).split('; ')   # .0024, as there, is 0.0024 here
    first = first.partition(', ')[2] if first.startswith(c.verdict) else first
    c.why = '; '.join(x for x in (first, *rest) if x)
    c.verdict = WORDS.get(c.verdict, c.verdict)
    return c


def read_arm(given, color):
    arm = block(given, name='', variant='–', baseline=False, options={}, params=None, checks={}, price={}, runs=[], curve={},
                stats={}, position_loss=[], loss_at_equal_time={}, loss_at_equal_flops={}, sample='')
    arm.color, arm.checks = color, block(arm.checks, status='–', lines=[], why='')
    arm.runs = [block(run, seed='–', status='–', reason='–', val_loss=None, best_val_loss=None, best_iter=None, train_loss=None,
                      seconds=None, init_hash='–', batch_hash='–') for run in arm.runs]
    arm.losses = {run.seed: run.val_loss for run in arm.runs if run.status == 'done' and run.val_loss is not None}
    x = list(arm.losses.values())
    arm.mean = float(np.mean(x)) if x else None
    arm.level = dec(arm.mean) + (f' ± {dec(np.std(x, ddof=1))}' if len(x) > 1 else '')
    arm.finished = f'{len(x)}/{len(arm.runs)}'
    c = block(arm.curve, iters=[], val=[], train=[], seeds=[])
    arm.iters, arm.curves = c.iters, {}
    for which, rows in (('val', c.val), ('train', c.train)):    # {seed: losses (N,)} of the runs that came to their end
        arm.curves[which] = {seed: np.array(row) for seed, row in zip(c.seeds or range(len(rows)), rows)
                             if len(row) == len(c.iters) > 0 and None not in row}
    arm.stats = [(name, *stat) for name, s in arm.stats.items() if (stat := layers_of(**s or {}))]
    return arm


def layers_of(iters=None, layers=None):
    """(iterations, values (layers, iterations)) of a variant's own statistic; NaN where it has none, None if it has none at all."""
    rows = [row if isinstance(row, list) else [row] for row in layers or []]
    if len(iters or []) == len(rows) > 0 and len(set(map(len, rows))) == 1:
        values = np.array(rows, float).T
        return (iters, values) if np.isfinite(values).any() else None


def cost(arm, base, key):
    """(value, times the baseline's) of one of COSTS; each None if unknown."""
    def value(a):
        return (a.params if key == 'params' else a.price.get(key)) if a else None
    mine, theirs = value(arm), value(base)
    given = arm.price.get(COSTS[key][1])
    return mine, given if given is not None else mine / theirs if mine is not None and theirs else None


# -----------------------------------------------------------------------------
# what is said

def together(x):
    """No line ends between a number and what follows it."""
    return re.sub(r'(?<=[\d×]) (?=[%×(\w])', '\xa0', x)


def ratio(x):
    """1.31, 1.008, 1"""
    return f'{x:.3f}'.rstrip('0').rstrip('.')


def answer(c, percent):
    """The verdict's difference, interval and what is missing, without the arm's name."""
    said = 'no mean difference' if c.mean is None else f'{dec(c.mean, sign="+")} nats'
    if c.interval:
        said += f', {percent}interval {dec(c.interval[0], sign="+")} to {dec(c.interval[1], sign="+")}'
    return f'{said}, {c.why}' if c.why.startswith('at ') else f'{said}, {c.n} seeds' + f'; {c.why}' * bool(c.why)


def price_words(r, arm):
    """The price in a line, what is known of it: the baseline's in units, the others' times the baseline's."""
    said = []
    for key, (value, times) in arm.costs.items():
        if value is not None and key not in ('forward_flops_per_token', 'compile_seconds'): # those are in the table
            title, _, show = COSTS[key]
            said.append(f'{show(value)} {title}' if times is None or arm is r.base else f'{ratio(times)} × {title}')
    for key, title in EQUAL.items():
        loss = vars(arm)[key].get('loss')
        if loss is not None and arm is not r.base:
            than = r.base and r.base.mean is not None
            said.append(f'{title}: {dec(loss)}' + (f' ({dec(loss - r.base.mean, sign="+")})' if than else ''))
    return ' · '.join(said)


def warnings(r):
    """What a reader must know before the verdicts: unpaired runs, runs that failed, leaks, checks that were not made."""
    if r.paired.batches_equal is False:
        yield 'The arms did not see the same batches: differences between seeds are not paired.'
    if r.paired.init_equal is False:
        yield 'Parameters that the arms share did not start equal.'
    for arm in r.arms:
        gone, of = [run.status for run in arm.runs if run.status != 'done'], f'of {len(arm.runs)}'
        missing = gone.count('missing')
        if len(gone) > missing:
            yield f'{arm.name}: {len(gone) - missing} {of} runs did not come to their end; see failed runs.'
        if missing:
            yield f'{arm.name}: {missing} {of} seeds were not run.'
    leaks = {}
    for arm in r.arms:
        if arm.checks.status not in ('ok', '–'):
            leaks.setdefault(arm.checks.status + f', {arm.checks.why}' * bool(arm.checks.why), []).append(arm.name)
    for said, names in leaks.items():
        yield f'{", ".join(names) if len(names) < len(r.arms) else "All arms"}: leak suite: {said}.'


def planned(r):
    """What was fixed before the first run, in sentences; a table of the learning rates tried may follow."""
    p = r.plan
    yield (f'Measured: {p.metric}. Seeds: {", ".join(map(str, p.seeds)) or "–"}. The loss at the end decides, not the '
           'best one on the way: picking the best of many evaluations rewards luck.')
    if p.match in MATCHED:
        yield f'Each arm is also compared with a baseline made for it, of {MATCHED[p.match]} (match={p.match}).'
    if p.looks:
        looks = p.looks if isinstance(p.looks, str) else ', '.join(map(str, p.looks))
        yield (f'Looks were planned at {looks} seeds; each tests at a stricter level, so that all '
               'together err as rarely as one test would.')
    if p.lr_sweep:
        yield (f'Learning rates, as factors on the recipe\'s: each arm runs with the one marked, whose loss was lowest on seed '
               f'{p.lr_sweep.get("seed")}; the verdicts do not use that seed.')


def explained(r):
    """How the statistics work, in sentences."""
    level = f'{r.plan.level:.3g}' if r.plan.level else 'the level of a look'
    several = ", after Holm's correction for several arms," if len(r.comparisons) > 1 else ''
    delta = f'±{r.plan.delta:g} nats' if r.plan.delta else '±delta'
    yield ('A difference is arm minus baseline at the same seed, below zero better. Runs of one seed share their batches and the '
           "initial values of the parameters that both arms have. The interval is Student's t over the seeds: where the mean of "
           'many such seeds plausibly lies. A run counts as one observation, however much text it is evaluated on.')
    yield (f'Helps and hurts: p of the paired t test is below {level}{several} and the exact sign-flip test, which assumes no '
           f'normal distribution, agrees. Equivalent: two one-sided tests show that the difference is within {delta}, set in '
           'advance. Can\'t tell: neither is shown; this is not "no effect". '
           f'Screen only: with fewer than {MIN_SEEDS} seeds not even the sign is to be trusted.')
    yield ('The interval over text says how far the difference could move on other text of the same kind, with these seeds. '
           "Steps: the baseline's iterations that the difference is worth at the end of its curve."
           + f' {r.paired.note}.' * bool(r.paired.note))


# -----------------------------------------------------------------------------
# tables

def table(head, rows, sort=False):
    """A cell: text, or (text, value), which sorts by the value and keeps its every digit. The first column names the row."""
    def numeric(x):
        return isinstance(x, tuple) and not isinstance(x[1], str)

    def cell(x):
        text, value = x if isinstance(x, tuple) else (x, None)
        return el('td', minus(text) if numeric(x) else text, class_='number' if numeric(x) else None, data_v=value)
    lines = [el('tr', el('th', el('span', row[0]), scope='row', data_v=row[0]), *map(cell, row[1:])) for row in rows]
    titles = [el('th', title, scope='col', class_='number' if rows and numeric(rows[0][i]) else None)
              for i, title in enumerate(head)]
    return el('div', el('table', el('thead', el('tr', *titles)), el('tbody', *lines), class_='sort' if sort else None),
              class_='scroll', tabindex='0')


def listed(d):
    """A dict as a list of terms; dicts within it in one line."""
    def flat(v):
        if isinstance(v, dict):
            return ', '.join(f'{key} {flat(x)}' for key, x in v.items())
        return ', '.join(map(flat, v)) if isinstance(v, list) else '–' if v is None else str(v)
    return el('dl', *(el('div', el('dt', key), el('dd', flat(v))) for key, v in d.items()))


def folded(title, inside):
    return el('details', el('summary', title), inside)


def exact(x, digits=4, sign=''):
    """A cell with a number."""
    return dec(x, digits, sign), x


def exact_pair(x):
    return ', '.join(dec(v, sign='+') for v in x) if x else '–', x and x[0]


def exact_p(p):
    return '<0.001' if p is not None and p < 0.001 else dec(p, 3), p


COLUMNS = {
    'd': 'arm minus baseline, mean over seeds, in nats', 'ms ×, FLOPs ×': "training cost, times the baseline's",
    'n': 'runs that came to their end / runs planned', 'loss': 'mean ± standard deviation over seeds',
    'wins': 'seeds at which the arm is lower', 'p': 'of the paired t test, or of ranks where a run diverged',
    'Holm': 'p, corrected for several arms', 'flip p': 'of the exact sign-flip test', 'sd of d': 'over seeds',
    'rho': 'correlation of the arms over seeds; above zero, pairing pays',
    'P(imp)': 'chance that a run of the arm is below a run of the baseline',
    'MDE80': 'the difference that 4 of 5 such studies would find',
    'other text': 'interval of d over text', 'steps': 'baseline iterations that d is worth; minus: lost',
}


def kind(verdict):
    return verdict if verdict in ('helps', 'hurts', 'equivalent') else 'open'


def verdict_table(r):
    """The answer and the price first, so that a phone shows them."""
    rows = [[title, (el('strong', word, class_=kind(word)), word), exact(c.mean, sign='+'), exact_pair(c.interval),
             *(exact(arm.costs[key][1], 3) for key in ('step_ms', 'flops_per_token')), (arm.finished, len(arm.losses)),
             (arm.level, arm.mean), ('–' if c.wins is None else f'{c.wins}/{c.n}', c.wins),
             *map(exact_p, (c.p, c.holm_p, c.flip_p)), exact(c.sd), exact(c.rho, 2), exact(c.p_improve, 2), exact(c.mde),
             exact_pair(c.text_interval), exact(c.step_equivalents, 0, '+')] for arm, c, title, word in r.verdicts]
    titles = ['arm', 'verdict', 'd', f'{r.plan.percent}interval', 'ms ×', 'FLOPs ×', 'n', 'loss', 'wins', 'p', 'Holm', 'flip p',
              'sd of d', 'rho', 'P(imp)', 'MDE80', 'other text', 'steps']
    return [table(titles, rows, sort=True), folded('What the columns mean', listed(COLUMNS))] if rows else []


def price_table(r):
    def priced(key, value, times):
        return '–' if value is None else COSTS[key][2](value) + (f' ({ratio(times)} ×)' if times is not None else ''), value

    def equal_to(loss=None, iters=None):
        return dec(loss) + (f' at {iters}' if iters is not None else ''), loss
    used = [key for key in COSTS if any(arm.costs[key][0] is not None for arm in r.arms)]
    equal = [key for key in EQUAL if any(vars(arm)[key] for arm in r.arms)]
    rows = [[arm.name, *(priced(key, *arm.costs[key]) for key in used), *(equal_to(**vars(arm)[key]) for key in equal)]
            for arm in r.arms]
    note = el('p', "Losses at the baseline's time or FLOPs are read off the arm's own curve; its schedule was not made to end "
              'there, so they are too high.', class_='soft') if equal else None
    titles = ['arm', *(COSTS[key][0] for key in used), *map(EQUAL.get, equal)]
    return [table(titles, rows, sort=True), note] if used or equal else []


def arms_table(r):
    """Options, and what the leak suite found."""
    rows = []
    for arm in r.arms:
        found = [el('div', text) for text in arm.checks.lines]
        rows.append([arm.name, arm.variant, ', '.join(f'{key}={v}' for key, v in arm.options.items()) or '–',
                     folded(arm.checks.status, Raw(''.join(found))) if found else arm.checks.status, arm.checks.why or '–'])
    return [table(['arm', 'variant', 'options', 'leak suite', 'why'], rows)] if rows else []


def failed_table(r):
    rows = [[arm.name, str(run.seed), run.status, run.reason]
            for arm in r.arms for run in arm.runs if run.status not in ('done', 'missing')]
    return [table(['arm', 'seed', 'status', 'reason'], rows)] if rows else []


def runs_table(r):
    rows = [[arm.name, (str(run.seed), run.seed), run.status, exact(run.val_loss), exact(run.best_val_loss),
             exact(run.best_iter, 0), exact(run.train_loss), exact(run.seconds, 1), run.init_hash, run.batch_hash]
            for arm in r.arms for run in arm.runs]
    titles = ['arm', 'seed', 'status', 'final loss', 'best', 'at', 'train loss', 'seconds', 'initial values', 'batches']
    return [folded(f'All {len(rows)} runs', table(titles, rows, sort=True))] if rows else []


def sweep_table(losses):
    """Final losses at the learning rates tried, the lowest marked; none: a run that did not come to its end."""
    factors, rows = list(dict.fromkeys(factor for row in losses.values() for factor in row)), []
    for name, row in losses.items():
        best = min(x for x in row.values() if x is not None)
        rows.append([name, *((dec(row[f]) + ' ←' * (row[f] == best), row[f]) for f in factors)])
    return [table(['arm', *(f'{factor} ×' for factor in factors)], rows)] if rows else []


# -----------------------------------------------------------------------------
# the page

CSS = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1c1e21;--soft:#5f656d;--rule:#dfe2e6;--panel:#f6f7f8;--delta:#8a919930;
--helps:#18794e;--hurts:#c2330f;--equivalent:#2f6fb5;--open:#6b7178;
--c0:#5f656d;--c1:#0b6bcb;--c2:#d1570a;--c3:#128a5f;--c4:#a8479b;--c5:#a37b00;--c6:#0b93b0;--c7:#c0304f}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--ink:#e6e8eb;--soft:#9aa1aa;--rule:#30353b;--panel:#1d2024;--delta:#aab2bb30;
--helps:#4cc38a;--hurts:#ff8a65;--equivalent:#7db8f5;--open:#a5acb5;
--c0:#a5acb5;--c1:#6cb2ff;--c2:#ff9a52;--c3:#4cc79a;--c4:#e08bd4;--c5:#e0bb45;--c6:#4fd0ea;--c7:#ff8095}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:2rem 1rem 5rem;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:break-word}
h1{font-size:1.7rem;line-height:1.2;margin:0}
h2{font-size:1.15rem;margin:3rem 0 .8rem;padding-top:.8rem;border-top:1px solid var(--rule)}
h3{font-size:.95rem;margin:0 0 .3rem}section>h3{margin-top:1.8rem}
p,li,dl{max-width:46rem}.soft,figcaption,nav{color:var(--soft);font-size:.875rem}
nav a{margin-right:.9rem;white-space:nowrap}a{color:inherit}
.answers{list-style:none;padding:0;margin:1.6rem 0 1rem}
.answers li{border-left:4px solid;padding:.1rem 0 .1rem .9rem;margin:0 0 1.3rem}
.answers p{margin:0;font-variant-numeric:tabular-nums}.answers p:first-child,b{color:var(--ink)}
.answers p+p{font-size:.875rem;color:var(--soft)}strong{font-weight:650}
.helps{color:var(--helps)}.hurts{color:var(--hurts)}.equivalent{color:var(--equivalent)}.open{color:var(--open)}
.warning{border-left:4px solid var(--hurts);background:var(--panel);padding:.5rem .9rem;margin:.4rem 0}
.scroll{overflow-x:auto;max-width:100%}table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .7rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule);white-space:nowrap}
thead th{color:var(--soft);font-weight:500;vertical-align:bottom}tbody th{font-weight:600}th.number,td.number{text-align:right}
th:first-child{position:sticky;left:0;background:var(--bg);padding-left:0}
tbody th span{display:block;width:max-content;max-width:9rem;white-space:normal;overflow-wrap:anywhere}td details{margin:0}
.sort thead th[tabindex]{cursor:pointer}[aria-sort=ascending]:after{content:" ↑"}[aria-sort=descending]:after{content:" ↓"}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(21rem,100%),1fr));gap:2.2rem 1.6rem}
figure{margin:0;max-width:30rem;min-width:0}figcaption{margin-top:.4rem}svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:12px;fill:var(--soft);font-variant-numeric:tabular-nums}svg .name{fill:var(--ink);font-weight:600}
.grid{stroke:var(--rule)}.axis,.zero{stroke:var(--soft)}.delta{fill:var(--delta)}.band{fill:currentColor;opacity:.16}
path{stroke-linecap:round;stroke-linejoin:round}.line{stroke-width:2}.dash .line{stroke-dasharray:5 4}
.one{fill:var(--bg);stroke:currentColor}.seed{display:none;opacity:.75}label{font-size:.875rem;color:var(--soft)}
.each:checked~svg .seed{display:inline}.each:checked~svg .band{display:none}
.legend{list-style:none;padding:0;margin:.2rem 0;display:flex;flex-wrap:wrap;gap:.1rem 1rem;color:var(--ink)}.legend li{min-width:0}
.legend i{display:inline-block;width:1rem;border-top:3px solid;vertical-align:middle;margin-right:.4rem}
.legend i.dash{border-top-style:dashed}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(20rem,100%),1fr));gap:1.4rem}.samples div{min-width:0}
pre{background:var(--panel);padding:.8rem;margin:0;border-radius:4px;overflow:auto;max-height:26rem;white-space:pre-wrap;
font:.8rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
dl{margin:0;font-size:.875rem}dt{color:var(--soft)}dd{margin:0;min-width:0;font-variant-numeric:tabular-nums}
dl div{display:grid;grid-template-columns:minmax(6rem,11rem) 1fr;gap:1rem;padding:.25rem 0;border-bottom:1px solid var(--rule)}
details{margin:1rem 0}summary{cursor:pointer}
""" + ''.join(f'.c{i}{{color:var(--c{i})}}' for i in range(8))

JS = """
for (const th of document.querySelectorAll('.sort thead th')) {
  th.tabIndex = 0;
  th.onkeydown = e => { if (e.key === 'Enter') th.onclick(); };
  th.onclick = () => {
    const body = th.closest('table').tBodies[0], way = th.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
    const key = row => { const v = row.cells[th.cellIndex].dataset.v; return v === '' || isNaN(v) ? v : +v; };
    const order = (x, y) => (x === undefined) - (y === undefined) || way * ((x > y) - (x < y));   // cells without a value last
    body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
    for (const other of th.parentNode.cells) other.removeAttribute('aria-sort');
    th.setAttribute('aria-sort', way > 0 ? 'ascending' : 'descending');
  };
}
"""


def header(r):
    """Title, and an answer for each arm."""
    items = []
    for arm, c, title, word in r.verdicts:
        cost = price_words(r, arm) if title == arm.name else ''     # said once
        said = answer(c, r.plan.percent) if c.arm else f'{arm.level}, {arm.finished} runs'
        items.append(el('li', el('p', el('strong', word, class_=kind(word)), ' ', el('b', title), ': ', together(minus(said))),
                        el('p', together(minus(cost))) if cost else None, class_=kind(word)))
    about = [r.config, f'{len(r.plan.seeds)} seeds' if r.plan.seeds else '', r.plan.metric, r.created]
    return el('header', el('h1', r.name), el('p', ' · '.join(x for x in about if x), class_='soft'),
              el('ul', *items, class_='answers'), *(el('p', text, class_='warning') for text in warnings(r)))


def drawn(r):
    """The figures that the report has numbers for, but for the forest and the diagnostics."""
    made = (figures.loss_figure(r, 'val', 'Validation loss'), figures.difference_figure(r),
            *(figures.cost_figure(r, key, COSTS[key][0]) for key in ('step_ms', 'flops_per_token')), figures.position_figure(r),
            figures.loss_figure(r, 'train', 'Training loss'))
    return [figure for figure in made if figure]


def shown(figure, number):
    """A <figure>: title, a box to show each seed, the drawing, the legend, the note."""
    keys, box = figure.series, []
    if figure.layers:                       # shades of one color: the first and the last say enough
        keys = keys[:1] + keys[1:][-1:]
    if any(s.each for s in figure.series):
        box = [el('input', type='checkbox', id=f'each{number}', class_='each'), el('label', 'each seed', for_=f'each{number}')]
    legend = [el('li', el('i', class_=figures.color_class(s.color), style=f'opacity:{s.alpha:.2f}'), s.label) for s in keys]
    return el('figure', el('h3', figure.title), *box, figures.svg(figure, number),
              el('figcaption', el('ul', *legend, class_='legend'), figure.note))


def plots(r):
    """Every figure of the report's own."""
    tree, every = figures.forest(r), [shown(figure, i) for i, figure in enumerate(drawn(r))]
    if tree:
        every.insert(0, el('figure', el('h3', tree.title), figures.forest_svg(tree), el('figcaption', tree.note)))
    return [el('div', *every, class_='figures')] if every else []


def diagnostics(r):
    """The figures of the variants, under their names."""
    mine = {}
    for i, (arm, figure) in enumerate(figures.stat_figures(r)):
        mine.setdefault(arm.color, [el('h3', arm.name)]).append(shown(figure, f'_{i}'))
    return [part for name, *every in mine.values() for part in (name, el('div', *every, class_='figures'))]


def page(r):
    """(id, title, contents) of the sections in their order; what is empty is left out."""
    samples = [el('div', el('h3', arm.name), el('pre', arm.sample)) for arm in r.arms if arm.sample]
    yield 'verdicts', 'Verdicts', verdict_table(r)
    yield 'price', 'Price', price_table(r)
    yield 'figures', 'Figures', plots(r)
    yield 'diagnostics', "The variants' own diagnostics", diagnostics(r)
    yield 'samples', 'Samples', [el('div', *samples, class_='samples')] if samples else []
    yield 'arms', 'Arms and leak suite', arms_table(r)
    yield 'failed', 'Failed runs', failed_table(r)
    yield 'runs', 'Runs', runs_table(r)
    yield 'environment', 'Environment', [listed(r.environment)] if r.environment else []
    yield 'recipe', 'Recipe', [folded("The baseline's options", listed(r.recipe))] if r.recipe else []
    yield 'command', 'Command', [el('pre', r.command)] if r.command else []
    tried = sweep_table(r.plan.lr_sweep.get('losses') or {})
    yield 'statistics', 'The plan, and how the statistics work', [
        *(el('p', text) for text in planned(r)), *tried, *(el('p', text) for text in explained(r))]


def write_html(report, path):
    """The report as one file that needs nothing else, not even a network."""
    r = read(report)
    sections = [(key, title, inside) for key, title, inside in page(r) if inside]
    data = json.dumps(report, default=str)  # ASCII; < and & could end or change the script
    for character in '<>&':
        data = data.replace(character, f'\\u{ord(character):04x}')
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'" # whatever a name holds, nothing is loaded
    head = el('head', el('meta', charset='utf-8'), el('meta', http_equiv='Content-Security-Policy', content=policy),
              el('meta', name='viewport', content='width=device-width, initial-scale=1'),
              el('title', r.name), el('style', Raw(CSS)))
    body = el('body', header(r), el('nav', *(el('a', title, href=f'#{key}') for key, title, _ in sections)),
              *(el('section', '\n', el('h2', title), *inside, id=key) for key, title, inside in sections),
              el('script', Raw(data), type='application/json', id='report'), el('script', Raw(JS)))
    Path(path).write_text(f'<!DOCTYPE html>\n{el("html", head, body, lang="en")}\n', encoding='utf-8')


def write_plots(report, folder):
    """The page's figures as PNGs; their paths. ImportError without matplotlib, an extra."""
    r, folder = read(report), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    every = [figures.forest(r), *drawn(r), *(figure for _, figure in figures.stat_figures(r))]
    return [figures.write_png(figure, folder) for figure in every if figure]
