# `make demo` and `make test` do all their set-up themselves; the others are for people who work on wherry.
SHELL := /bin/bash
PYTHON ?= $(shell for p in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
APT_RUN := crun conmon runc nftables libnftables1 catatonit golang-github-containers-common busybox-static iproute2 \
	python3-venv ca-certificates
APT_TEST := skopeo docker.io docker-compose iptables podman postgresql
APT_BENCH := buildah etcd-server mmdebstrap

.PHONY: setup demo up test check bench soak docs apt-run apt-test apt-bench clean

# The bytecode is made here: the API server runs as a user who may not write it, and would compile at every start.
setup: apt-run $(BIN)/wherry
	@$(BIN)/python -m compileall -q src/wherry

# Installs what is missing; without root it says what to install and goes on (simulated nodes need none of it).
apt-run apt-test apt-bench:
	@case $@ in apt-run) want="$(APT_RUN)";; apt-test) want="$(APT_TEST)";; *) want="$(APT_BENCH)";; esac; \
	./scripts/apt-install $$want

$(BIN)/wherry: pyproject.toml requirements.lock | apt-run
	@test -n "$(PYTHON)" || { echo "wherry needs Python 3.11 or newer"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "setup: installing Python packages"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m wherry.model.build
	@touch $@

demo: setup
	@$(BIN)/python examples/01-web/demo.py

up: setup
	@$(BIN)/wherry up

test: setup apt-test
	@$(BIN)/python -m pytest

soak: setup apt-test apt-bench
	@$(BIN)/python -m pytest -m soak -o addopts="-q --strict-markers --import-mode=importlib" --budget=off

check: setup
	@$(BIN)/ruff check src tests benchmarks examples
	@$(BIN)/ruff format --check src tests benchmarks examples
	@$(BIN)/lint-imports
	@$(BIN)/pyright

bench: setup apt-test apt-bench
	@for b in benchmarks/[a-z]*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

docs: setup
	@$(BIN)/python -m pytest tests/docs

clean:
	rm -rf .venv
