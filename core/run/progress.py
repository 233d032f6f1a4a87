"""Shows progress, by a moving line on a terminal and plain lines elsewhere; and logs to wandb if it works."""
import shutil
import sys


class Progress:
    """Shows the progress of a run of `total` iterations that begins at `start`."""

    def __init__(self, total, start=0):
        self.bar = None
        if sys.stdout.isatty():
            from tqdm import tqdm
            # 80 x 24 if a terminal reports a size of 0, in which tqdm would show nothing
            columns, rows = shutil.get_terminal_size()
            # smoothing=0 estimates the time left by the mean speed, with evaluations and checkpoints in it
            self.bar = tqdm(total=total, initial=start, file=sys.stdout, leave=False, miniters=0, smoothing=0,
                            bar_format='{n_fmt}/{total_fmt} [{bar:24}]{postfix}, {remaining} left',
                            ascii=' =', ncols=columns - 1, nrows=rows)

    def line(self, text):
        """Prints a line that stays."""
        if self.bar is None:
            print(text, flush=True)
        else:
            self.bar.write(text)

    def update(self, it, text):
        """Shows iteration `it` and a text, in the moving line or, without a terminal, in a new one."""
        if self.bar is None:
            self.line(f'iter {it}: {text}')
        else:
            # the window may have been resized
            self.bar.ncols = shutil.get_terminal_size().columns - 1
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(it - self.bar.n)

    def close(self):
        """Removes the moving line."""
        if self.bar is not None:
            self.bar.close()


def wandb_logger(project, name, config):
    """Returns a function that logs a dict to Weights & Biases, or ends the log if given None.

    If anything fails, it prints one warning and the run goes on.
    """
    def warn(error):
        reason = ' '.join(str(error).split())[:200]
        print(f'wandb: {reason}; the run goes on, log.jsonl has the numbers', file=sys.stderr)
    try:
        import wandb
        run = wandb.init(project=project, name=name, config=config, settings=wandb.Settings(init_timeout=10))
    # a missing package, a login, a network: none of them may end a run
    except Exception as error:
        warn(error)
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
