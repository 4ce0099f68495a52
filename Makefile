# Mezzotint: `make up` starts everything, `make test` runs all tests, `make lint` checks the code.
#
# Variables:
#   PYTHON            the Python that the virtual environment is made with (3.11 or newer)
#   INDEX_URL         another package index, in place of pip's own
#   EXTRA_INDEX_URL   one more package index beside it, such as torch's own for its CPU wheels
#   ARGS              what is added to `mezzotint up` or to pytest: make test ARGS="tests/dit -x"

PYTHON ?= python3
INDEX_URL ?=
EXTRA_INDEX_URL ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
EXTRAS := [train,test,lint]
TYPES := build/types/mezzotint
PACKAGES := dit kernels sampling training ui worker
INDEX := $(if $(INDEX_URL),--index-url $(INDEX_URL)) $(if $(EXTRA_INDEX_URL),--extra-index-url $(EXTRA_INDEX_URL))

.PHONY: up install test lint types constraints
.DELETE_ON_ERROR:

up: $(VENV)/installed
	$(BIN)/mezzotint up $(ARGS)

install: $(VENV)/installed-for-work

test: $(VENV)/installed-for-work
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/installed-for-work types
	$(BIN)/ruff check .
	$(BIN)/mypy $(TYPES)
	cd build/types && ../../$(BIN)/lint-imports ../../pyproject.toml --no-cache

# The folders are one package only once installed; mypy and import-linter read a tree of links instead.
types:
	rm -rf build/types
	mkdir -p $(TYPES)
	ln -s $(addprefix ../../../,$(PACKAGES) $(wildcard mezzotint/*.py) mezzotint/commands) $(TYPES)/

# `whole` stands while nothing in the environment is half-made: an install that was cut off starts afresh.
define pip_install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; \
	name one by make PYTHON=...")'
@test -e $(VENV)/whole || $(PYTHON) -m venv --clear $(VENV)
@rm -f $(VENV)/whole
$(BIN)/python -m pip install --disable-pip-version-check $(INDEX) -c constraints.txt -e '.$(1)'
@touch $(VENV)/whole
endef

$(VENV)/installed: pyproject.toml constraints.txt
	$(call pip_install,)
	@touch $@

$(VENV)/installed-for-work: pyproject.toml constraints.txt
	$(call pip_install,$(EXTRAS))
	@touch $(VENV)/installed $@

# Write down the versions that are installed now, as the ones to repeat.
constraints: $(VENV)/installed-for-work
	@mkdir -p build
	$(BIN)/python -m pip freeze --exclude-editable > build/freeze.txt
	(head -2 constraints.txt; sed 's/^\(torch==[0-9.]*\)+.*/\1/' build/freeze.txt) > build/constraints.txt
	mv build/constraints.txt constraints.txt

