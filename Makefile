# Needs Python 3.11 or newer, make (3.81 or newer) and git; everything else goes into .venv.
# ARGS goes to the command behind a target: make test ARGS='-k cancel', make serve ARGS='--port 50051'.
# PYTHON=/path/to/python chooses the interpreter that .venv is made with.

BIN = .venv/bin

.DEFAULT_GOAL = help
.PHONY: help demo serve test chaos fuzz bench bench-quick profile soak interop check format proto protoset baseline docs dev clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: ## watch an agent call a tool, pause, resume and remember, with a real local model
	@scripts/bootstrap.sh demo
	@$(BIN)/agent-service demo $(ARGS)

serve: ## run the service, with the local model unless OPENAI_API_KEY or OPENAI_BASE_URL is set
	@scripts/bootstrap.sh demo
	@$(BIN)/agent-service serve $(ARGS)

test: dev ## run the tests
	$(BIN)/pytest $(ARGS)

chaos: dev ## kill servers under load and prove that nothing is lost or doubled (minutes; ARGS=--help says more)
	$(BIN)/python -m tests.chaos $(ARGS)

bench: measuring ## measure the service beside references in the same run (5 to 10 minutes; ARGS='--only tokens')
	$(BIN)/python -m bench $(ARGS)

bench-quick: measuring ## the same in a minute or two, and coarser
	$(BIN)/python -m bench --quick $(ARGS)

profile: measuring ## draw where CPU time goes as flame graphs, into build/profile/ (ARGS='tokens --seconds 20')
	$(BIN)/python -m bench.profile $(ARGS)

soak: measuring ## load a server for 20 minutes and tell whether anything grows (ARGS='--minutes 60')
	$(BIN)/python -m bench.soak $(ARGS)

fuzz: dev ## send a server malformed requests and hostile model answers, 10,000 of them (ARGS=--help says more)
	$(BIN)/python -m tests.fuzz $(ARGS)

interop: dev ## run the clients of examples/ in Python, Go, TypeScript and Java; name some in ARGS to run only these
	@scripts/interop.sh $(ARGS)

check: dev ## check format, lint, types, layers of imports, protos, compatibility and that what is generated is up to date
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against proto/baseline.binpb
	scripts/proto.sh --check
	$(BIN)/python scripts/settings_table.py --check
	$(BIN)/python scripts/errors_page.py --check
	$(BIN)/python -m bench.page --check

format: dev ## format the code and the protos, and fix what lint can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

proto: dev ## generate generated/ from proto/
	scripts/proto.sh

protoset: dev ## write the contract's descriptors with comments for grpcurl -protoset, and say where
	@scripts/proto.sh --protoset

baseline: dev ## make the present contract the one that later changes must be compatible with (at a release)
	$(BIN)/buf build --exclude-source-info -o proto/baseline.binpb

docs: dev ## write the tables of settings and of performance and the page of errors into docs/
	$(BIN)/python scripts/settings_table.py
	$(BIN)/python scripts/errors_page.py
	$(BIN)/python -m bench.page

dev: ## install the development tools into .venv
	@scripts/bootstrap.sh dev

.PHONY: measuring
measuring:
	@scripts/bootstrap.sh bench

clean: ## remove everything that was installed or built
	rm -rf .venv .tools build dist examples/*/.venv examples/*/gen examples/*/dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf examples/*/node_modules examples/java/target examples/typescript/src/gen
	find agent_service generated tests -name __pycache__ -type d -prune -exec rm -rf {} +
