# make demo | make test | make test-zoo | make benchmark; each makes its own environment.
# Another interpreter:  make test PYTHON=python3.12 VENV=.venv-3.12
# Options:              make benchmark ARGS="--models-dir DIR"

supported = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
candidates := python3 python3.13 python3.12 python3.11
PYTHON ?= $(shell for python in $(candidates); do \
	$$python -c "$(supported)" 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
ARGS ?=

python := $(VENV)/bin/python
install := $(python) -m pip install --quiet
uv := VIRTUAL_ENV=$(VENV) $(python) -m uv

.PHONY: demo test test-zoo benchmark clean
demo: $(VENV)/.demo
	@$(python) examples/demo.py $(ARGS)

test: $(VENV)/.dev
	@$(python) -m pytest -n 2 --dist worksteal $(ARGS)

# All of keras.applications, and a grid search on Ray: half an hour.
test-zoo: $(VENV)/.dev
	@$(python) -m pytest -n 2 --dist worksteal -m slow $(ARGS) tests/zoo tests/search

benchmark: $(VENV)/.dev
	@$(python) benchmarks/structure.py $(ARGS)

# setup.cfg alone says what is installed, so only a change of it makes a new one.
$(VENV)/.made: setup.cfg
	@"$(PYTHON)" -c "$(supported)" || \
		{ echo "tfprune needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

# uv takes a sixth of pip's time; where it fails, as with an index only pip knows, pip does it.
$(VENV)/.%: $(VENV)/.made
	$(install) uv && $(uv) pip install --quiet --editable ".[$*]" || \
		$(install) --editable ".[$*]"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
