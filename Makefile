# make demo   install into .venv, then the whole chain on a simulated study: recordings -> report
# make demo-older   the same, with the paths of earlier work (Stable Diffusion 1.5, EEG straight to pixels) as rows beside it
# make test   the tests (under 15 minutes on 2 cores)
# make real DATA=../shared/data   the same code on real recordings
PYTHON ?= python3
DATA ?= ../shared/data
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_PROGRESS_BARS ?= 1
export WANDB_MODE ?= offline
export DS_ACCELERATOR ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)

.PHONY: demo demo-older test lint slow real clean-demo
.DELETE_ON_ERROR:

.venv/installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev,xformers]"
	@touch $@

demo: .venv/installed
	@$(BIN)/python launch/demo.py

demo-older: .venv/installed
	@$(BIN)/python launch/demo.py --older

real: .venv/installed
	@$(BIN)/python launch/real.py --data "$(DATA)"

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy ttd
	$(BIN)/lint-imports

test: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/pytest -m "not slow and not gpu" -q

slow: export OMP_NUM_THREADS = 1
slow: .venv/installed
	$(BIN)/pytest -m "slow and not gpu" -q

clean-demo:
	rm -rf data/simulated runs/demo
