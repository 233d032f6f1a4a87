"""Effects that are too good, or too odd, to be believed without a look."""
from statistics import median

# The largest gain that published ideas have shown here, of the baseline's loss: rope+qk_norm+relu2+rmsnorm at
# iteration 500, 1.550 for 1.739; of one idea, soft_window's .1768 of 2.1042 (docs/measurements.md)
LARGEST_GAIN = 0.109
# Leaks that were planted gained .71 of 2.1 nats
TOO_GOOD = 0.12
# The gain of a position is compared with those of as many on each side; as many at the beginning have too
# little context to be like others
NEIGHBOURS = 8
# Standard deviations, as the median tells them, by which a position must stand out, and nats that count
OUTLIER, LEAST = 10.0, 0.03
# Means of the same losses, added up in another order, in nats
ROUNDING = 1e-4


def suspicions(difference, baseline_loss, positions_base=None, positions_arm=None, text_interval=None,
               interval=None):
    """Returns a sentence for each oddity of an arm's effect, [] for an ordinary one.

    difference: the arm's mean loss less baseline_loss, the baseline's, in nats. positions_*: mean loss at each
    position, None where there is none. text_interval, interval: [low, high] of the difference over other text
    and over other seeds. What is None is not looked at.
    """
    found = []
    if -difference > TOO_GOOD * baseline_loss:
        found.append(f"a gain of {-difference:.4f} nats is {-difference / baseline_loss:.0%} of the baseline's "
                     f'{baseline_loss:.4f}; published ideas, four of them together too, gained at most '
                     f'{LARGEST_GAIN:.0%} here')
    if positions_base and positions_arm:
        found += odd_positions(positions_base, positions_arm)
    if text_interval:
        low, high = text_interval
        if not low - ROUNDING <= difference <= high + ROUNDING:
            found.append(f'the difference {difference:+.4f} lies outside its own interval over text, '
                         f'[{low:+.4f}, {high:+.4f}]: the windows say something else than the mean')
        if interval and (interval[0] > high + ROUNDING or interval[1] < low - ROUNDING):
            found.append(f'the interval over seeds, [{interval[0]:+.4f}, {interval[1]:+.4f}], and the one over text, '
                         f'[{low:+.4f}, {high:+.4f}], have nothing in common')
    return found


def odd_positions(base, arm):
    """Returns [] or one sentence, if a few positions gain far more than those around them."""
    gains = {p: b - a for p, (b, a) in enumerate(zip(base, arm)) if a is not None and b is not None}
    # how much more each position gains than its neighbours
    excess = {}
    for p in gains.keys() - range(NEIGHBOURS):
        around = [gains[q] for q in range(p - NEIGHBOURS, p + NEIGHBOURS + 1) if q != p and q in gains]
        if len(around) >= NEIGHBOURS:
            excess[p] = gains[p] - median(around)
    if not excess:
        return []
    # 1.4826 median absolute deviations are the standard deviation of normal numbers
    sd = 1.4826 * median(map(abs, excess.values()))
    odd = [p for p, x in sorted(excess.items()) if x > max(OUTLIER * sd, LEAST)]
    if not odd:
        return []
    worst = max(odd, key=excess.get)
    share = sum(excess[p] for p in odd) / len(gains)
    which = f'position {worst} gains'
    if len(odd) > 1:
        which = f"{len(odd)} positions ({', '.join(map(str, odd[:6]))}{', ...' * (len(odd) > 6)}) gain up to"
    return [f'{which} {gains[worst]:.4f} nats where those around gain {gains[worst] - excess[worst]:.4f}: '
            f'{share:.4f} of the mean gain comes from there']
