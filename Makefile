# One verb each: start | test | check | bench | docs. Everything lives in .venv; nothing else on the machine is touched.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
JOBS ?= 2

.PHONY: start test check bench bench-peers bench-engines bench-kenlm docs clean

start: .venv/.installed
	$(BIN)/cutaway run quickstart

# A stamp is newer than what it was made from, or the installation is made again.
.venv/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Cutaway needs Python 3.11 or newer; make start PYTHON=/path/to/python3.11")'
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

.venv/.developer: .venv/.installed
	$(PIP) install --quiet -c constraints.txt -e '.[dev,serve]'
	@touch $@

# Everything CI runs.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# The seconds-long half of it: style, types, floors.
check: .venv/.developer
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Rough figures within a minute a script; `make bench FULL=1` for those worth quoting.
bench: .venv/.developer
	@for script in $$(find benchmarks -maxdepth 1 -name '*.py' -not -name soak.py -not -name attacks.py | sort); do \
	  echo "== $$script"; $(BIN)/python $$script $(if $(FULL),,--quick) || exit 1; done

# The libraries we measure ourselves against, in an environment of their own. litgpt wants numpy below 2, which pyarrow
# 26 wants above.
bench-peers: .venv-peers/.installed

.venv-peers/.installed: pyproject.toml constraints.txt
	@test -x .venv-peers/bin/python || "$(PYTHON)" -m venv .venv-peers
	.venv-peers/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt \
	  torch transformers accelerate litgpt tokenizers gguf sentence-transformers onnxruntime onnx lm_eval trl peft datasets "pyarrow<26" \
	  -e .
	.venv-peers/bin/python -m pip --disable-pip-version-check install --quiet --no-deps joeynmt "importlib_metadata<9" zipp
	@touch $@

# The engines that serve.py races against, apart, for they want other versions. llama.cpp is compiled for this processor:
# cmake, a C++ compiler and a quarter of an hour.
bench-engines: .venv-engines/.installed

.venv-engines/.installed: pyproject.toml constraints.txt
	@test -x .venv-engines/bin/python || "$(PYTHON)" -m venv .venv-engines
	CMAKE_ARGS=-DGGML_NATIVE=ON .venv-engines/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt \
	  --no-binary llama-cpp-python torch transformers sentencepiece llama-cpp-python openvino-genai ctranslate2
	@touch $@

# KenLM's module and its lmplz, which only its source has. Needs cmake, a C++ compiler and Boost's headers and libraries
# (Debian: cmake g++ libboost-program-options-dev libboost-system-dev libboost-thread-dev libboost-test-dev zlib1g-dev).
bench-kenlm: .venv-peers/bin/lmplz

.venv-peers/bin/lmplz: .venv-peers/.installed
	.venv-peers/bin/python -m pip --disable-pip-version-check download --quiet --no-deps --no-binary kenlm \
	  --dest build/kenlm kenlm==0.3.0
	tar -xzf build/kenlm/kenlm-0.3.0.tar.gz -C build/kenlm
	cmake -S build/kenlm/kenlm-0.3.0 -B build/kenlm/make -DCMAKE_BUILD_TYPE=Release -DKENLM_MAX_ORDER=6
	cmake --build build/kenlm/make --parallel $(JOBS) --target lmplz build_binary
	.venv-peers/bin/python -m pip --disable-pip-version-check install --quiet build/kenlm/kenlm-0.3.0.tar.gz
	cp build/kenlm/make/bin/build_binary build/kenlm/make/bin/lmplz .venv-peers/bin/

# Help pages and the settings reference, generated from the code; a test fails when they are stale.
docs: .venv/.developer
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv .venv-peers build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
