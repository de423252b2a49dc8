# The front door. `make` lists what there is; every recipe is a line or two, and what takes thought is in setup/.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# The cluster that `make up` makes, and what else to tell ktcw-vm: make up SIZE="--etcd 1 --workers 0" ARGS="--accel tcg"
SIZE ?= --etcd 3 --workers 2
ARGS ?=
# A Debian archive, where apt has none of Debian's configured (Ubuntu): make up MIRROR=http://ARCHIVE/debian
MIRROR ?=

ktcw := bin/ktcw-vm
scripts := $(wildcard setup/*.sh images/*/*.sh) .ci/run bin/ktcw-vm
# KTCW_PROGRAM is one that is built already, for tests of these very lines.
program := $(or $(KTCW_PROGRAM),$(or $(CARGO_TARGET_DIR),target)/release/ktcw-vm)

##@ A cluster

.PHONY: up
up: setup build images ## install what is missing, build, and bring a cluster up
	@$(ktcw) up $(SIZE) $(ARGS)
	@echo; echo "Type 'make shell' for a shell in which ktcw-vm and the cluster are at hand, or use $(ktcw)."

.PHONY: status
status: ## nodes, roles, etcd's leader, leases
	@$(ktcw) status $(ARGS)

.PHONY: verify
verify: ## check the running cluster from inside its nodes
	@$(ktcw) verify $(ARGS)

.PHONY: shell
shell: ## a shell with ktcw-vm on its PATH, where the cluster's addresses can be reached
	@echo "ktcw-vm is at hand here; leave with exit"
	@PATH="$(CURDIR)/bin:$$PATH" setup/libvirt.sh exec "$${SHELL:-bash}"

.PHONY: down
down: ## remove the cluster, and the libvirt and namespace that make setup started
	@[ -x $(program) ] || $(MAKE) build
	@setup/libvirt.sh ensure
	@$(ktcw) down --yes $(ARGS)
	@setup/libvirt.sh stop

##@ Its parts

.PHONY: setup
setup: ## install missing packages, make sure that a libvirt answers
	@setup/install.sh build run
	@setup/libvirt.sh ensure

.PHONY: build
build: ## the program, optimised: bin/ktcw-vm
	$(if $(KTCW_PROGRAM),@:,cargo build --locked --release --bin ktcw-vm)

.PHONY: images
images: build ## what the machines run, from source; nothing to do when it is there
	@setup/images.sh $(program) $(if $(MIRROR),--mirror "$(MIRROR)")

##@ Checks

.PHONY: test
test: ## unit, golden, fakes, CLI transcripts, libvirt's test driver, a real sshd; go vet; one real machine from up to down; drills on real etcd processes; a page in a browser (not with KTCW_NO_BROWSER=1)
	@setup/install.sh build run test $(if $(KTCW_NO_BROWSER),,browser) $(if $(CI),ci)
	cargo test --locked -- --show-output
	@setup/e2e.sh smoke
	@setup/native.sh test
	@setup/go.sh vet

.PHONY: e2e
e2e: ## a real 3 + 2 cluster in a namespace of its own, looked at from all sides and broken, another drilled; a small one under emulation
	@setup/install.sh build run test $(if $(CI),ci)
	@setup/e2e.sh e2e

.PHONY: e2e-full
e2e-full: ## the same, other sizes, every drill of the catalogue, kill -9 in every kind of fault, drills under emulation
	@setup/install.sh build run test $(if $(CI),ci)
	@setup/e2e.sh full
	@setup/rebuild.sh

.PHONY: soak
soak: ## an hour of drills, snapshots, power cuts, stops and starts on one cluster, in random order (KTCW_SOAK_SECONDS, KTCW_SOAK_SEED)
	@setup/install.sh build run test $(if $(CI),ci)
	@setup/e2e.sh soak

.PHONY: bench
bench: ## the figures, as ratios of one run; the JSON is kept in target/bench
	@setup/install.sh build run test $(if $(CI),ci)
	@setup/native.sh bench
	@setup/e2e.sh bench

.PHONY: lint
lint: ## formatting, clippy, licences and bans, shellcheck, gofmt
	@setup/install.sh build test
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --test e2e --test drills_native -- -D warnings # `--all-targets` leaves them out, as `cargo test` does
	@setup/go.sh fmt
	shellcheck -x $(scripts)
	"$$(setup/tool.sh cargo-deny)" --locked --log-level error check --hide-inclusion-graph licenses bans sources

.PHONY: audit
audit: ## known vulnerabilities; where the databases cannot be reached it says "not checked"
	@setup/audit.sh

.PHONY: fuzz
fuzz: ## five minutes of libFuzzer on every parser; what it finds is kept in fuzz/artifacts
	@fuzz/run.sh

##@ Housekeeping

.PHONY: clean
clean: ## remove what was built here; images and tools in the cache stay
	cargo clean

.PHONY: clean-cache
clean-cache: ## remove the images and tools in the user's cache too
	@. setup/env.sh; rm -rf -- "$${cache:?}"; echo "removed $$cache"

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  First: make up. Then: make shell. What is made is SIZE ($(SIZE)); ARGS="…" is passed on:'
	@echo '  make up SIZE="--etcd 1 --workers 0" ARGS="--accel tcg"'
