# Needs Python 3.11 or newer, make (3.81 or newer) and git; everything else goes into .venv.
# ARGS goes to the command behind a target: make test ARGS='-k cancel', make serve ARGS='--port 50051'.
# PYTHON=/path/to/python chooses the interpreter that .venv is made with.

BIN = .venv/bin

.DEFAULT_GOAL = help
.PHONY: help demo serve test check format proto docs dev clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: ## watch an agent call a tool, pause, resume and remember, with a real local model
	@scripts/bootstrap.sh demo
	@$(BIN)/agent-service demo $(ARGS)

serve: ## run the service, with the local model unless OPENAI_API_KEY or OPENAI_BASE_URL is set
	@scripts/bootstrap.sh demo
	@$(BIN)/agent-service serve $(ARGS)

test: dev ## run the tests
	$(BIN)/pytest $(ARGS)

check: dev ## check format, lint, types, layers of imports, protos and that generated code is up to date
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	scripts/proto.sh --check
	$(BIN)/python scripts/settings_table.py --check

format: dev ## format the code and the protos, and fix what lint can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

proto: dev ## generate generated/ from proto/
	scripts/proto.sh

docs: dev ## write the table of settings into docs/
	$(BIN)/python scripts/settings_table.py

dev: ## install the development tools into .venv
	@scripts/bootstrap.sh dev

clean: ## remove everything that was installed or built
	rm -rf .venv .tools build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find agent_service generated tests -name __pycache__ -type d -prune -exec rm -rf {} +
