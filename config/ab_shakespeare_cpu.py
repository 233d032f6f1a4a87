"""For comparisons on a laptop: nanoGPT's CPU recipe with a shorter schedule. About 40 s a run on one core."""

dataset = 'shakespeare_char'
device = 'cpu'
compile = False
seeds = 5

eval_interval = 200
curve_iters = 36                    # a quarter of the split until the last evaluation, which is judged and reads it all
log_interval = 10
always_save_checkpoint = False
save_best = False                   # the last weights are what is judged

batch_size = 12
block_size = 64
gradient_accumulation_steps = 1

n_layer = 4
n_head = 4
n_embd = 128
dropout = 0.0                       # it sees each character less than once: there is nothing to regularise

learning_rate = 1e-3
max_iters = 800
lr_decay_iters = 800
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
