"""For comparisons on a text that is read once, in bytes: Python, or by --dataset=NAME prose, smiles or poems.
A million characters, seen many times, reward whatever regularises (arXiv 2604.23434). 10.72M parameters;
2,000 iterations read 33 million bytes, 0.74 of code's. Run data/code/prepare.py first."""

dataset = 'code'

eval_interval = 250                 # for the curves; only the last one is judged, on the whole split
curve_iters = 40                    # batches spread over the validation split, the same ones always
log_interval = 20
always_save_checkpoint = False
save_best = False                   # the last weights are what is judged

batch_size = 64
block_size = 256
gradient_accumulation_steps = 1

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.0                       # next to no token comes twice

# best for the baseline, 2 seeds: 0.8317 with 1e-3, 0.8241 with 1.4e-3, 0.8215 with 2e-3, 0.8291 with 2.8e-3
learning_rate = 2e-3
max_iters = 2000
lr_decay_iters = 2000
min_lr = 2e-4
beta2 = 0.99
warmup_iters = 100
