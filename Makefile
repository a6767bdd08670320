# `make demo` and `make test` each work as the first command on a fresh machine with Python 3.11+, git and a C compiler.

# Without bytecode files every process would compile torch and TensorFlow anew.
unexport PYTHONDONTWRITEBYTECODE
BIN := .venv/bin
DEMO ?= experiment=digits
PYTEST_ARGS ?=

.PHONY: help setup geth slurm apptainer demo test test-fast test-slow lint format bench contracts proto clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## make .venv/ with everything installed
	@scripts/setup_environment.sh

geth: setup  ## build geth and CometBFT into a cache folder outside the checkout (once, 4 to 8 minutes)
	@scripts/install_ledger_tools.sh

slurm:  ## install the Slurm that tests start (Debian, Ubuntu; as root or with sudo)
	@scripts/install_slurm.sh

apptainer:  ## give this host an Apptainer without setuid, in a cache folder outside the checkout (Debian; 20 MB)
	@scripts/install_apptainer.sh

demo: setup  ## a whole swarm of four sites on this host, on real data (DEMO="experiment=thyroid" for the other one)
	@$(BIN)/swarm-hpc local $(DEMO)

test: test-fast test-slow  ## all tests

test-fast: setup  ## the tests that answer in under a minute (on every core)
	$(BIN)/python -m pytest -n auto -m "not slow and not system and not geth and not slurm and not apptainer" $(PYTEST_ARGS)

test-slow: setup  ## the others, two files at a time: whole swarms, kills, TensorFlow, real ledger nodes, Slurm, Apptainer
	@scripts/install_ledger_tools.sh --optional --for-tests
	@scripts/install_slurm.sh --optional
	@scripts/install_apptainer.sh --optional
	$(BIN)/python -m pytest -m "slow or system or geth or slurm or apptainer" -n 2 --dist loadfile $(PYTEST_ARGS)

lint: setup  ## style, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## put the code into the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## all benchmarks; writes benchmarks/results/*.json
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

contracts: setup  ## recompile the ledger's contracts
	$(BIN)/python -m swarm_hpc.sn.contracts.compile

proto: setup  ## generate the ABCI messages anew from swarm_hpc/sn/abci.proto
	cd swarm_hpc/sn && ../../$(BIN)/uv run --no-project --system-certs --with grpcio-tools==1.76.0 \
		python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. abci.proto

clean:  ## remove everything that make made in this folder
	rm -rf .venv .venv.lock build dist *.egg-info swarm_hpc/kernels/_native*.so runs
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
