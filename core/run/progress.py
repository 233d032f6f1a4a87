"""Shows progress, by a moving line on a terminal and plain lines elsewhere; and logs to wandb if it works."""
import datetime
import queue
import secrets
import shutil
import sys
import threading
import time
from contextlib import suppress

from core.errors import Stop, terminal_may_close
from core.run.files import read_json

WANDB_SECONDS = 9       # that a run waits for Weights & Biases; 10 with all around it
TIME_LEFT_SECONDS = 30  # between two lines that tell the time left, where there is no terminal


class Progress:
    """Shows the progress of a run of `total` iterations that begins at `start`."""

    def __init__(self, total, start=0):
        self.bar = None
        self.total, self.start = total, start
        self.began = self.told = time.monotonic()
        if sys.stdout.isatty():
            from tqdm import tqdm
            # 80 x 24 if a terminal reports a size of 0, in which tqdm would show nothing
            columns, rows = shutil.get_terminal_size()
            # smoothing=0 estimates the time left by the mean speed, with evaluations and checkpoints in it
            self.bar = tqdm(total=total, initial=start, file=sys.stdout, leave=False, miniters=0, smoothing=0,
                            bar_format='{n_fmt}/{total_fmt} [{bar:24}]{postfix}, {remaining} left',
                            ascii=' =', ncols=columns - 1, nrows=rows)

    @terminal_may_close()
    def line(self, text):
        """Prints a line that stays."""
        if self.bar is None:
            print(text, flush=True)
        else:
            self.bar.write(text)

    @terminal_may_close()
    def update(self, it, text):
        """Shows iteration `it` and a text, in the moving line or, without a terminal, in a new one."""
        if self.bar is None:
            self.line(f'iter {it}: {text}{self.time_left(it)}')
        else:
            # the window may have been resized
            self.bar.ncols = shutil.get_terminal_size().columns - 1
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(it - self.bar.n)

    def time_left(self, it):
        """Returns ', 1:23:45 left', by the mean speed so far, or '' if it was told within TIME_LEFT_SECONDS."""
        now = time.monotonic()
        if now - self.told < TIME_LEFT_SECONDS or it <= self.start:
            return ''
        self.told = now
        seconds = (now - self.began) / (it - self.start) * (self.total - it)
        return f', {datetime.timedelta(seconds=round(seconds))} left'

    @terminal_may_close()
    def close(self):
        """Removes the moving line."""
        if self.bar is not None:
            self.bar.close()


def wandb_run_id(out_dir, resumed, wanted):
    """Returns the id of a run at Weights & Biases, the same when it is resumed; None if it is not to have one.

    out_dir: the Path of the run folder, whose config.json keeps the id.
    """
    id = None
    if resumed:
        # a damaged config.json ends no run that has a checkpoint
        with suppress(Stop):
            id = (read_json(out_dir / 'config.json') or {}).get('wandb_id')
    return id or (secrets.token_hex(4) if wanted else None)


def wandb_logger(project, name, config, run_id):
    """Returns a function that logs a dict to Weights & Biases, or ends the log if given None.

    A run of that id is continued. If anything fails, it prints one warning and the run goes on.
    """
    def warn(error):
        missing = isinstance(error, ModuleNotFoundError) and error.name == 'wandb'
        reason = 'not installed (pip install wandb)' if missing else ' '.join(str(error).split())[:200]
        print(f'wandb: {reason}; the run goes on, log.jsonl has the numbers', file=sys.stderr, flush=True)
    outcome = queue.SimpleQueue()

    def begin():
        try:
            import wandb
            outcome.put(wandb.init(project=project, name=name, config=config, id=run_id, resume='allow',
                                   settings=wandb.Settings(init_timeout=WANDB_SECONDS)))
        # a missing package, a login, a network: none of them may end a run
        except Exception as error:
            outcome.put(error)
    # in a thread, because without a server init() takes longer than its timeout
    threading.Thread(target=begin, daemon=True).start()
    try:
        run = outcome.get(timeout=WANDB_SECONDS)
    except queue.Empty:
        run = TimeoutError(f'no answer in {WANDB_SECONDS} s')
    if isinstance(run, Exception):
        warn(run)
        return lambda record: None

    def log(record):
        nonlocal run
        try:
            if run is not None and record is None:
                run.finish()
            elif run is not None:
                run.log(record, step=record['iter'])
        except Exception as error:
            warn(error)
            run = None
    return log
