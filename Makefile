# Everything a developer runs. `make test` on a bare machine sets up, builds and checks.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup build test demo lint clean

help: ## this list
	@sed -n -E 's/^([a-z]+):[^#]*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST)

setup: ## make .venv: Python packages, and ROS 2 where the system has none
	@bash scripts/setup.sh

build: setup ## build the ROS package into .ros/install
	@bash scripts/build.sh

test: lint build ## lint, then all tests
	@bash scripts/test.sh

demo: build ## play both clips through the node and show what comes out
	@bash -c '. scripts/env.sh && vil-tracker demo'

lint: setup ## style, types and import directions
	@bash scripts/lint.sh

clean: ## remove what was built and cached; .venv stays
	@rm -rf .ros build install log .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
