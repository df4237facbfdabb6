# Every target works on a machine that has Python >= 3.11 and make. The rest is fetched into .venv and .orderstream.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUNDLE := $(firstword $(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem))
BASE_URL ?= http://127.0.0.1:3000
ORDER_PATH ?= /orders
ID_FIELD ?= orderId
MINUTES ?= 5
RATE ?= 300
SEED ?=
DEMO_STATE ?= .orderstream/demo
PLAY_RATE ?= 3
DEMO_FAULTS ?= {"latencyMs": 120, "latencyDistribution": "lognormal", "latencyP99Ms": 600, "declinedAmounts": ["13.13"]}
export K6_NO_USAGE_REPORT = true
K6_ENV = --env BASE_URL=$(BASE_URL) --env ORDER_PATH=$(ORDER_PATH) --env ID_FIELD=$(ID_FIELD)

ifneq ($(BUNDLE),)
export REQUESTS_CA_BUNDLE ?= $(BUNDLE)
export SSL_CERT_FILE ?= $(BUNDLE)
export PIP_CERT ?= $(BUNDLE)
export NODE_EXTRA_CA_CERTS ?= $(BUNDLE)
endif

# uv caches downloads below HOME. If HOME is not writable, the cache is in the virtual environment.
UV_CACHE_DIR ?= $(shell cache="$${XDG_CACHE_HOME:-$${HOME:-/nonexistent}/.cache}/uv"; \
	mkdir -p "$$cache" 2>/dev/null && [ -w "$$cache" ] && echo "$$cache" || echo "$(CURDIR)/$(VENV)/.uv-cache")
export UV_CACHE_DIR

.DEFAULT_GOAL := help
.PHONY: help up demo compose-up ob-up down test check k6 k6-quick bench bench-report bench-smoke bench-low bench-snapshot bench-provider bench-console profile soak contracts diagrams screenshots lock clean

help: ## list the targets
	@$(PYTHON) -c 'import re, sys; [print("  %-14s %s" % line) for line in re.findall("(?m)^([a-z0-9-]+):.*?## (.*)", open(sys.argv[1]).read())]' $(MAKEFILE_LIST)

up: $(READY) ## start everything on this machine. Ctrl-C stops it
	@exec $(BIN)/orderstream up

# The demo has a state directory of its own, so that it never touches the data of `make up`. Addresses of another running
# stack are left out, because `orderstream env` may have set them in this shell.
demo: $(READY) ## show it: start everything with a bank that can fail and 3 orders/s, with data of its own. Ctrl-C stops it
	@exec env -u POSTGRES_URL -u REDIS_URL -u KAFKA_BROKERS -u KAFKA_OPTIONS -u BASE_URL -u PAYMENT_PROVIDER_URL \
		ORDERSTREAM_STATE=$(DEMO_STATE) PAYMENT_PROVIDER=simulator SIMULATOR_FAULTS='$(DEMO_FAULTS)' PLAY_RATE=$(PLAY_RATE) \
		$(BIN)/orderstream up

compose-up: ## build the image and start everything in containers (needs Docker with Compose)
	@docker compose up -d

ob-up: ## start Jaeger alone in a container, for OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318
	@docker compose up -d jaeger

down: ## stop everything that `up`, `compose-up` or `ob-up` started. The data stays
	@if [ -x $(BIN)/orderstream ]; then $(BIN)/orderstream down; fi
	@if [ -n "$$(docker compose ps -aq 2>/dev/null)" ]; then docker compose --profile console down; fi

test: $(READY) ## run every test on real servers, with ports and data of their own
	@$(BIN)/pytest --numprocesses 2 --dist loadfile

check: $(READY) ## run the linter and check types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

k6: $(READY) ## load the running system: 5 -> 40 orders/s over 3.5 minutes
	@$(BIN)/k6 run k6/orderstream.js $(K6_ENV)

k6-quick: $(READY) ## load the running system: 5 users for 30 s
	@$(BIN)/k6 run k6/orderstream.js --vus 5 --duration 30s $(K6_ENV)

bench: $(READY) ## compare OrderStream with what people would use instead, and measure it at further loads (40 minutes, QUICK=1: 5)
	@$(BIN)/python -m tests.load.bench $(if $(QUICK),--quick) $(if $(filter-out undefined,$(origin PEERS)),--peers "$(PEERS)") \
		$(if $(filter-out undefined,$(origin ROWS)),--rows "$(ROWS)")

bench-report: $(READY) ## write the results of `make bench` in the file RESULT into README, docs/performance.md and its plot
	@$(BIN)/python -m tests.load.bench.report $(RESULT)

bench-smoke: $(READY) ## measure settled orders/s, settle time and memory on a system of its own
	@$(BIN)/python -m tests.load.bench.smoke $(if $(CONSOLE),--console)

bench-low: $(READY) ## measure settle times and the cost of an order at 1, 40 and 200 orders/s, and the cost of an idle system
	@$(BIN)/python -m tests.load.bench.low_load

bench-snapshot: $(READY) ## measure the settle time while a snapshot keeps millions of dead rows from being removed
	@$(BIN)/python -m tests.load.bench.snapshot

bench-provider: $(READY) ## measure how orders settle with a slow, silent, pending or absent provider, on a system of its own
	@$(BIN)/python -m tests.load.bench.provider $(if $(ROWS),--rows $(ROWS)) $(if $(QUICK),--quick)

bench-console: $(READY) ## measure how fast the console answers with ORDERS (3,000,000) orders, on a system of its own
	@$(BIN)/python -m tests.load.bench.console $(if $(ORDERS),--orders $(ORDERS))

profile: $(READY) ## draw a flame graph of a running SERVICE, for SECONDS (20), into .orderstream/profile
	@$(BIN)/python -m tests.load.flame_graph $(or $(SERVICE),$(error Name a service: make profile SERVICE=payment-worker)) $(if $(SECONDS),--seconds $(SECONDS))

soak: $(READY) ## load a system of its own for MINUTES (5) at RATE (300) orders/s while faults happen, then check the promises
	@$(BIN)/python -m tests.load.soak --minutes $(MINUTES) --rate $(RATE) $(if $(SEED),--seed $(SEED))

contracts: $(READY) ## generate contracts/events/ from the types
	@$(BIN)/python contracts/generate.py

diagrams: $(READY) ## generate the diagrams of docs/architecture.md, the sentences of docs/promises.md and the table of the operator's API
	@$(BIN)/python docs/generate.py

screenshots: $(READY) ## take the screenshots of the console for README and docs/console.md, from a real run (needs Chromium)
	@PYTHONPATH=$(CURDIR) $(BIN)/python docs/screenshots.py

lock: $(READY) ## pin the newest versions of all requirements, with hashes
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --upgrade pyproject.toml -o requirements/runtime.txt
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --upgrade --all-extras pyproject.toml -o requirements/dev.txt

clean: ## remove the virtual environment and every cache (not the data: see `orderstream reset`)
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@$(PYTHON) -c 'import pathlib, shutil; [shutil.rmtree(path) for top in ("src", "tests") for path in pathlib.Path(top).rglob("__pycache__")]'

# pip installs uv, whose version is pinned. uv installs the other requirements in seconds and checks every hash.
$(READY): pyproject.toml requirements/uv.txt requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "OrderStream needs Python 3.11 or newer; $(PYTHON) is older. Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@[ -x $(BIN)/pip ] || { echo "Creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the pinned requirements"
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@$(BIN)/uv pip install -q --python $(BIN)/python --system-certs --compile-bytecode --require-hashes -r requirements/dev.txt
	@$(BIN)/uv pip install -q --python $(BIN)/python --offline --no-build-isolation --no-deps -e .
	@touch $@
