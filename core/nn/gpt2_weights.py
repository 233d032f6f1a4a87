"""Loads OpenAI's GPT-2 weights through Hugging Face transformers (pip install transformers)."""
import torch

from core.errors import Stop

# 124M, 350M, 774M and 1558M parameters
SIZES = {
    'gpt2': dict(n_layer=12, n_head=12, n_embd=768),
    'gpt2-medium': dict(n_layer=24, n_head=16, n_embd=1024),
    'gpt2-large': dict(n_layer=36, n_head=20, n_embd=1280),
    'gpt2-xl': dict(n_layer=48, n_head=25, n_embd=1600),
}


def download_gpt2(name):
    """Returns a GPT2LMHeadModel's state dict, by a name in SIZES; Stop without transformers or network."""
    if name not in SIZES:
        raise Stop(f"init_from={name}: allowed: {', '.join(SIZES)}")
    try:
        from transformers import GPT2LMHeadModel
    except ImportError:
        raise Stop(f'init_from={name}: needs Hugging Face transformers: pip install transformers') from None
    try:
        return GPT2LMHeadModel.from_pretrained(name).state_dict()
    except OSError as error: # no network, no cache
        raise Stop(f"init_from={name}: {' '.join(str(error).split())[:200]}") from None


@torch.no_grad()
def load_gpt2(model, weights):
    """Copies a GPT2LMHeadModel's state dict into a GPT, which has the same names."""
    state = model.state_dict()
    # these four matrices belong to modules called Conv1D there, which store them transposed
    transposed = 'attn.c_attn.weight', 'attn.c_proj.weight', 'mlp.c_fc.weight', 'mlp.c_proj.weight'
    for name, w in weights.items():
        # masks, not parameters
        if name.endswith(('.attn.bias', '.attn.masked_bias')):
            continue
        state[name].copy_(w.t() if name.endswith(transposed) else w)
