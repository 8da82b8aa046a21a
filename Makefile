# The verbs of this project. `make help` lists them.
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
TOOLS := $(abspath $(TARGET)/tools)
ADVISORIES := https://github.com/RustSec/advisory-db
# Those of the system when it has them; else they are built once, into the target directory.
DENY := $(or $(shell command -v cargo-deny),$(TOOLS)/bin/cargo-deny)
NEXTEST := $(or $(shell command -v cargo-nextest),$(TOOLS)/bin/cargo-nextest)

.PHONY: help demo test test-only lint deny bench soak packages
.DEFAULT_GOAL := help

help:    ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## */  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: packages    ## builds, then a guest in QEMU writes; its disk is broken, rolled back and cloned; two drives vanish, the daemon is killed, every byte is still right
	$(CARGO) build --release --locked -p laminad -p lamina-cli -p lamina-journeys --bins
	$(CARGO) run --release --locked -p lamina-journeys --bin demo

test: packages lint deny test-only    ## everything that must pass before a change is taken

lint:    ## formatting and clippy
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

deny: $(DENY)    ## licences, advisories and sources of dependencies
	$(DENY) --locked check bans licenses sources
	@if timeout 20 git ls-remote -q $(ADVISORIES) HEAD >/dev/null 2>&1; then \
	    $(DENY) --locked check advisories; \
	else \
	    echo "make deny: advisories were NOT checked: $(ADVISORIES) cannot be reached" >&2; \
	fi

# The tests of laminad and lamina build the binaries that the journeys use.
test-only: $(NEXTEST)    ## the tests alone
	$(NEXTEST) nextest run --locked --workspace --no-fail-fast --status-level slow --final-status-level slow

bench: packages    ## speed beside qemu-storage-daemon: a table, and JSON
	$(CARGO) build --release --locked -p laminad -p lamina-cli
	$(CARGO) run --release --locked -p lamina-bench

soak: packages    ## a million crashes, fuzzed decoders, then an hour of kills, power losses and lost drives under a guest's load
	LAMINA_SIM_STATES=1000000 LAMINA_SIM_SEED=1000 $(CARGO) test --locked -p lamina-simulation --test crash_random -- --nocapture
	LAMINA_SIM_HISTORIES=20000 LAMINA_SIM_LIVES=6000 LAMINA_SIM_STATES=200000 LAMINA_SIM_SEED=1000000 $(CARGO) test --locked -p lamina-simulation \
	    --test life_cycles --test life_after_crashes --test life_cycle_crashes
	tests/fuzz/run.sh 120
	$(CARGO) build --release --locked -p laminad -p lamina-cli
	LAMINA_SOAK=1 $(CARGO) test --release --locked -p lamina-journeys -- --include-ignored --nocapture --test-threads 1

packages:
	tests/install-packages.sh

# About 4 minutes of one core each.
$(TOOLS)/bin/cargo-%:
	$(CARGO) install cargo-$* --locked --root $(TOOLS) --target-dir $(TOOLS)/build
	rm -rf $(TOOLS)/build
