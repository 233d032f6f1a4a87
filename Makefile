# make demo   an environment, then a variant trained and sampled on Shakespeare: minutes on a laptop, about one on a GPU
# make ab     the environment, then a study: baseline, soft_window and alibi, 5 seeds each, about ten minutes on two CPU cores
# make test   the environment, then the test suite, minutes on two CPU cores
# make test-slow   what is too long for every change: run it before a release
# make drills      kills, signals, a full disk, damaged files, hostile input: under ten minutes on two CPU cores
PYTHON ?= python3
TORCH  ?= torch==2.13.0
# a torch that is installed already is used, so that nobody downloads CUDA twice; SITE= makes an environment without it
SITE   ?= $(shell $(PYTHON) -c 'import torch' 2>/dev/null && echo --system-site-packages)
BIN    := .venv/bin

.PHONY: demo ab test test-slow drills clean

demo: .venv/ready
	$(BIN)/python train.py $$($(BIN)/python -c "import torch; print('config/train_shakespeare_char' + '_cpu' * (not torch.cuda.is_available()) + '.py')") --variant=surprise
	$(BIN)/python sample.py --out_dir=out-surprise --num_samples=2

ab: .venv/ready
	$(BIN)/python ab.py config/ab_shakespeare_cpu.py --variants=soft_window,alibi --seeds=5

test: .venv/ready
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest tests -q -n auto

test-slow: .venv/ready
	$(BIN)/python -m pytest tests -q -n auto -m slow

drills: .venv/ready
	$(BIN)/python -m pytest tests/drills -q -n auto -m drill

.venv/ready: pyproject.toml
	$(PYTHON) -m venv $(SITE) .venv
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable \
	    ".[test$$($(BIN)/python -c 'import torch; print(",interpreter" * (torch.version.cuda is None))')]"
	touch $@

clean:
	rm -rf .venv *.egg-info
