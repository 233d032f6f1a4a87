"""OpenAI's GPT-2 weights as a start, through Hugging Face transformers (pip install transformers)."""
import torch

from model import build
from core.errors import Stop

SIZES = { # n_layer, n_head, n_embd: 124M, 350M, 774M and 1558M parameters
    'gpt2': (12, 12, 768), 'gpt2-medium': (24, 16, 1024), 'gpt2-large': (36, 20, 1280), 'gpt2-xl': (48, 25, 1600),
}


def pretrained(name, variant, seed, model_args):
    """The variant with GPT-2's weights in all the parameters it shares with the baseline, its context cropped to block_size."""
    if name not in SIZES:
        raise Stop(f"init_from={name}: allowed: {', '.join(SIZES)}")
    try:
        from transformers import GPT2LMHeadModel
    except ImportError:
        raise Stop(f'init_from={name}: needs Hugging Face transformers: pip install transformers') from None
    try:
        weights = GPT2LMHeadModel.from_pretrained(name).state_dict()
    except OSError as error: # no network, no cache
        raise Stop(f"init_from={name}: {' '.join(str(error).split())[:200]}") from None
    n_layer, n_head, n_embd = SIZES[name]
    free = {k: v for k, v in model_args.items() if k not in ('block_size', 'vocab_size', 'n_layer', 'n_head', 'n_embd', 'bias')}
    model = build(variant, seed, n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=1024, vocab_size=50257,
                       bias=True, **free)
    load_gpt2(model, weights)
    model.crop_block_size(model_args.get('block_size', 1024))
    return model


@torch.no_grad()
def load_gpt2(model, weights):
    """Copies a GPT2LMHeadModel's state dict: the names are ours, but its Conv1D stores the four matrices transposed."""
    mine = model.state_dict()
    for name, w in weights.items():
        if name.endswith(('.attn.bias', '.attn.masked_bias')): # masks, not parameters
            continue
        transposed = name.endswith(('attn.c_attn.weight', 'attn.c_proj.weight', 'mlp.c_fc.weight', 'mlp.c_proj.weight'))
        mine[name].copy_(w.t() if transposed else w)
