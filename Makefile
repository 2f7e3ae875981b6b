# `make demo` and `make test` are all a newcomer needs; both install what is missing first (see `make deps`).
CARGO ?= cargo
# Where cargo builds when the environment does not say otherwise.
CARGO_TARGET_DIR ?= target

.PHONY: all help deps versions build demo test bench soak faults check fmt clippy doc deny

all: build

help:
	@echo 'make demo   the whole way, live, on this machine (KEEP=1 leaves it running)'
	@echo 'make test   every test, on a real ZooKeeper and a real haproxy'
	@echo 'make bench  how fast and at what cost, in a release build (SIZES="1x10 100x10" ONLY=propagation shorten it)'
	@echo 'make soak   everything that can happen to haproxy, under load, for 10 minutes (SOAK_SECONDS, SOAK_SEED)'
	@echo 'make faults everything that can happen to ZooKeeper, the network and the disks; needs root (FAULTS= for the short forms)'
	@echo 'make check  format, clippy, documentation: before each commit'
	@echo 'make deps   install haproxy, ZooKeeper and a Java runtime when missing'
	@echo 'make build  both programs into target/debug'

deps:
	@.ci/deps

# The tests and the demo start the real programs found beside them, so these are built first, in the same profile. The
# demo is built along: with its features in the same call, nothing is compiled twice.
build:
	$(CARGO) build --locked --workspace --bins --example demo

# KEEP is the demo's option here, not the harness's variable that keeps the folders of a test.
demo: deps build
	@env -u KEEP $(CARGO_TARGET_DIR)/debug/examples/demo $(if $(KEEP),--keep)

# A package's test programs, as cargo's options. (With `--package` its dependencies would have other features, and be
# compiled once more.)
programs = $(addprefix --test=,$(notdir $(basename $(wildcard $(1)/tests/*.rs)) $(patsubst %/,%,$(dir $(wildcard $(1)/tests/*/main.rs)))))

# Most tests wait: synapse's programs run beside everything else, whose output is shown after theirs. The lines of the table
# of versions are printed whether or not the output of tests is.
test: deps versions build
	$(CARGO) test --locked --workspace --no-run
	@said=$(CARGO_TARGET_DIR)/tests-beside.log; \
	$(CARGO) test --locked --workspace --lib --bins $(call programs,common) $(call programs,nerve) >$$said 2>&1 & beside=$$!; \
	$(CARGO) test --locked --workspace $(call programs,synapse); synapse=$$?; \
	wait $$beside; beside=$$?; cat $$said; \
	[ $$synapse = 0 ] && [ $$beside = 0 ]

# Other versions of haproxy and ZooKeeper: downloaded once, not installed.
versions: deps
	@for suite in bullseye trixie sid; do .ci/other-versions haproxy $$suite >/dev/null || exit 1; done
	@for suite in bullseye trixie; do .ci/other-versions zookeeper $$suite >/dev/null || exit 1; done

# Nothing else should run on the machine meanwhile.
bench: deps
	$(CARGO) build --locked --release --workspace --bins --example bench
	@$(CARGO_TARGET_DIR)/release/examples/bench $(SIZES) $(if $(ONLY),--only $(ONLY)) $(BENCH)

soak: deps build
	SOAK_SECONDS=$${SOAK_SECONDS:-600} $(CARGO) test --locked -p synapse --test soak -- --nocapture

faults: deps build
	FAULTS=$${FAULTS-long} $(CARGO) test --locked -p synapse --test faults --test hundred -- --nocapture --test-threads=1
	FAULTS=$${FAULTS-long} $(CARGO) test --locked -p nerve --test control --test registration --test sessions -- --nocapture --test-threads=1 \
	  a_frozen_nerve an_expired_ an_app_that_died silently_another that_do_not_last local of_two_services

check: fmt clippy doc deny

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps --quiet

# Needs cargo-deny and, for the advisories, its database; says so where they are not to be had.
deny:
	@if command -v cargo-deny >/dev/null 2>&1; then \
	  $(CARGO) deny --config .deny.toml check bans licenses sources; \
	else echo 'cargo-deny is not installed: licences and sources were not checked (cargo install cargo-deny)'; fi
