# Short names for what CONTRIBUTING.md tells at length.   make help
.DEFAULT_GOAL := help
.PHONY: help install run build test test-unit test-e2e lint fmt clean

help: ## Show these lines
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "%-10s %s\n", $$1, $$2 }'

install: ## Fetch what the build needs
	cargo fetch --locked

run: build ## Start a server on this machine: http://127.0.0.1:8080, data in ./data
	@exec bin/codeq serve

build: ## Build bin/codeq
	cargo build --release --locked -p cli
	@mkdir -p bin
	@cp target/release/codeq bin/codeq

test: ## Run all tests that need nothing but this machine
	cargo test --workspace --locked

test-unit: ## Run the tests that open no socket
	cargo test --locked -p base -p queue -p consensus -p replica -p storage -p sim -p api --lib --bins --tests

test-e2e: ## Build the image, start three containers, stop the leader (needs Docker)
	cargo xtask walk rb --driver docker

lint: ## Check format and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo xtask tidy

fmt: ## Format the sources
	cargo fmt --all

clean: ## Remove what was built, and ./data
	cargo clean
	rm -rf bin dist data
