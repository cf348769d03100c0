# make demo and make test each need Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-stacks coverage lint types docs bench format clean

help:  ## Show what there is.
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: .venv/.cli  ## Prune real digits in four ways: tables, and the picture demo/demo.png.
	$(BIN)/swapjax demo

test: .venv/.dev  ## Run the tests, the examples of the docs and the notebooks.
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-stacks:  ## Run quick tests on the oldest and the newest packages that will do.
	.ci/test-stacks

coverage: .venv/.dev  ## Run them, a quarter slower, and tell which lines they miss.
	$(BIN)/pytest --cov -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/.dev  ## Check style.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev  ## Check types.
	$(BIN)/mypy

docs: .venv/.docs  ## Build the site of the docs into site/.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html; to search it too, call $(BIN)/mkdocs serve and open what it says."

bench: .venv/.dev  ## Measure starts and stages, then the comparisons on MNIST and CIFAR-10 (hours, resumable).
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/first_calls.py
	$(BIN)/python benchmarks/fuzz.py
	$(BIN)/python benchmarks/kills.py
	$(BIN)/python benchmarks/stage.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/roles.py
	$(BIN)/python benchmarks/convolutions.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/budgets.py
	$(BIN)/python benchmarks/woodfisher.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/sparse_training.py
	$(BIN)/python benchmarks/global_momentum.py
	$(BIN)/python benchmarks/plasticity.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/search_proxies.py
	$(BIN)/python benchmarks/search_proxies_report.py
	$(BIN)/python benchmarks/noisy_labels.py
	$(BIN)/python benchmarks/sparse_robust.py
	$(BIN)/python benchmarks/backward.py
	$(BIN)/python benchmarks/backward_vcas.py
	$(BIN)/python benchmarks/backward_blocks.py
	$(BIN)/python benchmarks/oneshot.py
	$(BIN)/python benchmarks/mlpnet_mnist.py
	$(BIN)/python benchmarks/noise.py
	$(BIN)/python benchmarks/noise_rate.py
	$(BIN)/python benchmarks/noise_attacked.py
	$(BIN)/python benchmarks/resnet20_cifar10.py
	$(BIN)/python benchmarks/mobilenet_cifar10.py
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev,real]"
	$(BIN)/python benchmarks/real.py

format: .venv/.dev  ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment, caches and the demo's output.
	rm -rf .venv .cache .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache demo site

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "swapjax needs Python 3.11 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/.docs: pyproject.toml | .venv/bin/python
	@echo "Installing swapjax and what builds its docs into .venv (a minute the first time)."
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[docs]"
	@touch $@

.venv/.cli: pyproject.toml | .venv/bin/python
	@echo "Installing swapjax into .venv (a minute the first time)."
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[cli]"
	@touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	@echo "Installing swapjax and its development tools into .venv (minutes the first time)."
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@ .venv/.cli
