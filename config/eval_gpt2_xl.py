"""Measures OpenAI's GPT-2 XL (1,558M) on OpenWebText, and trains nothing.
Expect 2.54 on validation, nanoGPT's figure. GPT-2 has read other pages; fine-tuning closes much of it."""

init_from = 'gpt2-xl'
eval_only = True
batch_size = 8
eval_iters = 500                    # 500 random batches: noise of about a hundredth
wandb_log = False
