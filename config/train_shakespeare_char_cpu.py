"""The same on a laptop without a GPU: a smaller model, a shorter context, fewer iterations.
Expect a validation loss of 1.88 after 2,000 iterations, about 3 minutes."""

out_dir = 'out-shakespeare-char-cpu'
dataset = 'shakespeare_char'
device = 'cpu'
compile = False                     # compiling takes longer than it would save here

eval_interval = 500                 # half as often as on a GPU: each reads the whole split, at a CPU's pace
log_interval = 10
always_save_checkpoint = False      # only when validation improves

batch_size = 12
block_size = 64                     # attention and logits are cheap at this length
gradient_accumulation_steps = 1

n_layer = 4
n_head = 4
n_embd = 128
dropout = 0.0                       # too small and too short a run to overfit

learning_rate = 1e-3                # small models take larger steps
max_iters = 2000
lr_decay_iters = 2000               # the same as max_iters, as a rule
min_lr = 1e-4                       # learning_rate / 10, as a rule
beta2 = 0.99                        # 768 tokens an iteration are few: average over more of them
warmup_iters = 100
