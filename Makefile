# make demo   train a small binding model on real data and look at what it learned (a few minutes)
# make test   run the tests
# Both need nothing but Python 3.11 or newer, pip and make: they make .venv themselves.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
export PYTHONUNBUFFERED := 1

.PHONY: demo test test-slow lint samples clean

demo: $(VENV)/.installed
	$(RUN) -m launch.demo

test: $(VENV)/.installed
	$(RUN) -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(VENV)/.installed
	$(RUN) -m pytest -m slow

lint: $(VENV)/.installed
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

$(VENV)/.installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "This needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing into $(VENV) (a minute or so) ..."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
