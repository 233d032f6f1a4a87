"""What a checkpoint keeps of a model."""
from core.errors import NO_CHECKPOINT, Stop


def weights(model):
    """What a checkpoint keeps: parameters and persistent buffers by name, tied ones once, under their first name."""
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {name for name, _ in model.named_parameters()}
    return {name: t for name, t in model.state_dict().items() if name not in tied}


def load_weights(model, tensors):
    """A checkpoint's tensors into the model; a Stop where they do not fit."""
    mine = weights(model)
    wrong = sorted(set(mine) ^ set(tensors)) or [name for name, t in mine.items() if t.shape != tensors[name].shape]
    if wrong:
        raise Stop(f'the checkpoint does not fit the model, whose code or options have changed: {wrong[0]}', NO_CHECKPOINT)
    model.load_state_dict(tensors, strict=False)
