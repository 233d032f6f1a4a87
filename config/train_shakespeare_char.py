"""A small GPT on the characters of Shakespeare, the first thing to run on a GPU.
Expect a validation loss of 1.47 in about a minute on one H100."""

out_dir = 'out-shakespeare-char'
dataset = 'shakespeare_char'
wandb_log = False                   # --wandb_log=True on the command line
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt'

eval_interval = 250                 # often: this model soon overfits; eval_iters stays 0, the whole split
log_interval = 10                   # not every iteration: they are short
always_save_checkpoint = False      # only when validation improves, for the same reason

batch_size = 64
block_size = 256                    # characters the model looks back
gradient_accumulation_steps = 1

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2                       # 10.7M parameters would learn 1.0M characters by heart

learning_rate = 1e-3                # small models take larger steps
max_iters = 5000
lr_decay_iters = 5000               # the same as max_iters, as a rule
min_lr = 1e-4                       # learning_rate / 10, as a rule
beta2 = 0.99                        # average squared gradients over more iterations: each has few tokens
warmup_iters = 100                  # short: hardly needed at this size
