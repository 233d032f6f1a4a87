"""The Shakespeare model with Grok-1's parts: llama3_char.py's, but with GeGLU, norms on both sides of
attention and MLP, and scaled embeddings. Grok-1's cap of 30 on scores is left out, because it would need
the T x T scores (--score_cap=30 with softcap). The recipe is train_shakespeare_char.py's, so that the two
compare."""

variant = 'rope+rmsnorm+glu+gqa+post_norm+scaled_embedding'
glu_gate = 'gelu'
n_kv_head = 1                       # of 6 query heads; Grok-1 has 8 of 48

out_dir = 'out-grok-char'
dataset = 'shakespeare_char'
wandb_log = False                   # --wandb_log=True on the command line
wandb_project = 'shakespeare-char'
wandb_run_name = 'grok'

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
