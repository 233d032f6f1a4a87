"""The Shakespeare model with nanochat's parts: rotary positions, QK norm, squared ReLU, RMSNorm.
The recipe is train_shakespeare_char.py's, so that the two compare."""

variant = 'rope+qk_norm+relu2+rmsnorm'

out_dir = 'out-modern-char'
dataset = 'shakespeare_char'
wandb_log = False                   # --wandb_log=True on the command line
wandb_project = 'shakespeare-char'
wandb_run_name = 'modern'

eval_interval = 250                 # often: this model soon overfits; eval_iters stays 0, the whole split
log_interval = 10
always_save_checkpoint = False      # only when validation improves, for the same reason

batch_size = 64
block_size = 256                    # characters the model looks back
gradient_accumulation_steps = 1

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
