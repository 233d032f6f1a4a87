"""What a running script shows: one moving line on a terminal, plain lines elsewhere; and wandb, if asked, never in the way."""
import shutil
import sys
import time


class Progress:

    def __init__(self, total, start=0):
        self.total, self.start, self.began = total, start, time.time()
        self.terminal = sys.stdout.isatty()

    def line(self, text):
        """A line that stays."""
        print(f'\r\x1b[K{text}' if self.terminal else text, flush=True)

    def update(self, it, text):
        """Where the run is: the moving line, or a plain one."""
        if not self.terminal:
            return self.line(f'iter {it}: {text}')
        left = (self.total - it) * (time.time() - self.began) / max(it - self.start, 1)
        full = 24 * it // max(self.total, 1)
        bar = f"{it}/{self.total} [{'=' * full}{' ' * (24 - full)}] {text}, {int(left) // 60}:{int(left) % 60:02d} left"
        print(f'\r\x1b[K{bar[:shutil.get_terminal_size().columns - 1]}', end='', flush=True)

    def close(self):
        pass


def wandb_logger(project, name, config):
    """A function that logs a dict to Weights & Biases, None at the end; whatever fails is one warning and the run goes on."""
    def warn(error):
        print(f'wandb: {" ".join(str(error).split())[:200]}; the run goes on, log.jsonl has the numbers', file=sys.stderr)
    try:
        import wandb
        run = wandb.init(project=project, name=name, config=config, settings=wandb.Settings(init_timeout=10))
    except Exception as error: # an import, a login, a network: none of them may end a run
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
