# The two commands of the README are `make serve` and `make test`; both make one .venv with the versions of constraints.txt.
#
#   PORT=N         serve: listen there instead of on the configured port
#   PYTHON=...     the Python (3.11 or newer) that .venv is made of
#   VENV=DIR       another place for .venv
#   JOBS=N         test: in so many processes; 2 if it is not given
#   EDITABLE=no    install a copy of the project, not a link to it;  SUITE=DIR  run the tests of DIR (CI tests the installed copy so)

VENV ?= .venv
SUITE ?= .
JOBS ?= 2
EDITABLE ?= yes
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
SOURCES = setup.cfg pyproject.toml constraints.txt $(wildcard twisted/plugins/*.py)
ifeq ($(EDITABLE),yes)
# editable_mode=compat: the default kind of editable install hides the twistd plugin.
LINK = --config-settings editable_mode=compat -e
endif
ifneq ($(strip $(PORT)),)
export MAYROS_GATEWAY_PORT = $(PORT)
endif

help: ## show this
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-14s %s\n' "$$name" "$$text"; done

serve: $(VENV)/.installed ## install, set up, and run the gateway with the embedded model
	@$(BIN)/mayros setup
	@$(BIN)/mayros models install smollm2
	@port=$${MAYROS_GATEWAY_PORT:-$$($(BIN)/mayros config get gateway.port)}; \
	token=$$($(BIN)/mayros gateway token) || token=; scheme=http; trust=; \
	if [ "$$($(BIN)/mayros config get gateway.tls.enabled)" = true ]; then \
		scheme=https; trust=" --cacert '$$($(BIN)/mayros gateway cert --show | sed -n 's/^Certificate: *//p')'"; \
	fi; \
	printf '\nAddress: %s://127.0.0.1:%s\nToken:   %s\n\nTry, in another terminal:\n\n' "$$scheme" "$$port" "$${token:-(none)}"; \
	printf "curl -sS%s %s://127.0.0.1:%s/v1/chat/completions -H 'Authorization: Bearer %s' -H 'Content-Type: application/json' -d '%s'\n\n" \
		"$$trust" "$$scheme" "$$port" "$$token" '{"model": "mayros", "messages": [{"role": "user", "content": "hi"}]}'
	@exec $(BIN)/twistd -n --pidfile= mayros

test: $(VENV)/.installed-test ## run the tests
	@suite='$(SUITE)'; python=$$(cd $(BIN) && pwd)/python; cd "$$suite" && exec "$$python" -m twisted.trial -j $(JOBS) tests

check: $(VENV)/.installed-check ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-test ## measure against a floor of the same run
	$(BIN)/python -m bench

faults: $(VENV)/.installed-test ## kill -9 the gateway, restart it under load, fill its disk, lock its store and so on, and look for what was lost
	$(BIN)/python .ci/kill9.py --rounds 25
	$(BIN)/python -m bench.restarts
	$(BIN)/python -m bench.faults

docs: $(VENV)/.installed ## write docs/protocol.schema.json, docs/openapi.json and docs/cli.md anew from the types and the commands
	$(BIN)/python -m mayros.ws.contract docs/protocol.schema.json
	$(BIN)/python -m mayros.web.openapi docs/openapi.json
	$(BIN)/python -m mayros.cli.reference docs/cli.md

clean: ## remove .venv and everything else that was made here
	rm -rf $(VENV) build dist *.egg-info _trial_temp* .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache

$(VENV)/bin/python:
	@test -n '$(PYTHON)' || { echo 'error: this needs Python 3.11 or newer as python3; found $(shell python3 --version 2>&1). Name another one: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'error: $(PYTHON) is not Python 3.11 or newer' >&2; exit 1; }
	@echo 'Making $(VENV) with $(PYTHON)'
	@$(PYTHON) -m venv $(VENV) || { echo 'error: $(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)' >&2; rm -rf $(VENV); exit 1; }
	@$(PIP) --quiet pip

$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/python
	$(PIP) $(LINK) '.[local]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) $(LINK) '.[local,test]'
	@touch $@

$(VENV)/.installed-check: $(VENV)/.installed-test
	$(PIP) $(LINK) '.[local,test,check]'
	@touch $@

.PHONY: help serve test check bench faults docs clean
.DEFAULT_GOAL := help
