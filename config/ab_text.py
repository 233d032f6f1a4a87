"""For comparisons on larger text, in which each token is seen once.
A million characters, seen many times, reward whatever regularises (arXiv 2604.23434). Prepare the text with
data/text/prepare.py, or give --dataset=openwebtext; 2,000 iterations read 131 million tokens."""

dataset = 'text'

eval_interval = 250
eval_iters = 40                     # batches spread over the validation split, the same ones always
log_interval = 20
always_save_checkpoint = False
save_best = False                   # the last weights are what is judged

batch_size = 64
block_size = 1024
gradient_accumulation_steps = 1

n_layer = 12
n_head = 12
n_embd = 768
dropout = 0.0                       # no token comes twice

learning_rate = 6e-4
max_iters = 2000
lr_decay_iters = 2000
min_lr = 6e-5
weight_decay = 1e-1
beta2 = 0.95
warmup_iters = 200
