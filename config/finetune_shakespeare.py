"""Teaches GPT-2 XL to speak like Shakespeare, in GPT-2's own tokens. Run data/shakespeare/prepare.py first.
A few minutes on one GPU; the gain comes in the first iterations, then it overfits."""

out_dir = 'out-shakespeare'
dataset = 'shakespeare'
init_from = 'gpt2-xl'               # the largest; gpt2, gpt2-medium and gpt2-large need less memory
wandb_log = False

eval_interval = 5                   # the whole run is 20 iterations
eval_iters = 40                     # a sample: a 1.5B model takes its time over the whole split
always_save_checkpoint = False      # only when validation improves

batch_size = 1                      # 1 x 32 x 1024 = 32,768 tokens an iteration; the set has 301,966
gradient_accumulation_steps = 32
max_iters = 20                      # about two epochs

learning_rate = 3e-5                # low and constant: nudge what it knows, do not overwrite it
decay_lr = False
