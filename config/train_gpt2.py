"""GPT-2 (124M) on OpenWebText: torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py
Expect a loss of 2.85 after 4 days on 8 A100 40GB, nanoGPT's figures."""

dataset = 'openwebtext'
wandb_log = False                   # --wandb_log=True on the command line: four days are worth watching
wandb_project = 'owt'
wandb_run_name = 'gpt2-124M'

batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8 # shared among the GPUs: 12 x 1024 x 40 = 491,520 tokens an iteration

max_iters = 600000                  # 295 billion tokens
lr_decay_iters = 600000             # the same as max_iters, as a rule

eval_interval = 1000
eval_iters = 200                    # a sample: the whole split is 4.4 million tokens
log_interval = 10

weight_decay = 1e-1
