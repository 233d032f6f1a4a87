"""The fastest honest Shakespeare: nanoGPT's best loss, 1.4697, in less than 10 seconds on one H100.
Size, batches and whole-split loss are those of train_shakespeare_char.py; better parts need fewer iterations.
The time is that of training; docs/measurements.md has the figures."""

variant = 'rope+alibi+qk_norm+relu2+rmsnorm' # rotary positions and slopes: the best of seven tried

out_dir = 'out-speedrun-char'
dataset = 'shakespeare_char'

eval_interval = 250
log_interval = 50
always_save_checkpoint = False
save_best = False                   # saved once, at the end

batch_size = 64
block_size = 256
gradient_accumulation_steps = 1

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

learning_rate = 2e-3
max_iters = 1000
lr_decay_iters = 1000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 50
