"""For comparisons on a laptop on a text that is read once: config/ab_shakespeare_cpu.py on bytes of Python.
0.82M parameters, 0.6 million bytes. About 40 s a run on one core. Run data/code/prepare.py first."""

dataset = 'code'
device = 'cpu'
compile = False

eval_interval = 200
eval_iters = 144                    # batches spread over the validation split, always the same: 0.11 million bytes
curve_iters = 36                    # until the last evaluation, which is judged
log_interval = 10
always_save_checkpoint = False
save_best = False                   # the last weights are what is judged

batch_size = 12
block_size = 64
gradient_accumulation_steps = 1

n_layer = 4
n_head = 4
n_embd = 128
dropout = 0.0                       # next to no token comes twice

# best for the baseline, 6 seeds: 2.1801 with 1e-3, 2.0776 with 2e-3, 2.0610 with 2.8e-3, 2.0635 with 4e-3
learning_rate = 3e-3
max_iters = 800
lr_decay_iters = 800
min_lr = 3e-4
beta2 = 0.99
warmup_iters = 100
