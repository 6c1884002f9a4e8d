# The commands that people type. Everything else is in `cargo xtask`.

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/constellation
TEST_BINARIES := $(CACHE)/test-binaries
E2E := $(CACHE)/e2e
BENCH := $(CACHE)/bench
TARGET = $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
CARGO_DENY := 0.20.2
# Where `cargo xtask compile` leaves the programs of nodes and pods.
COMPILED = $(TARGET)/x86_64-unknown-linux-musl/release
MIRROR := $(CACHE)/mirror
IMAGE := $(CACHE)/node-image
CONSTELLATION := cargo run --quiet --locked -p constellation -- --workspace local
export PATH := $(CACHE)/tools/bin:$(PATH)

.PHONY: help setup check test e2e up down bench

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: ## Install missing Debian packages and cargo tools
	scripts/install-dependencies
	@cargo deny --version 2>/dev/null | grep -qx 'cargo-deny $(CARGO_DENY)' || \
		CARGO_TARGET_DIR=$(CACHE)/tools/target cargo install cargo-deny --version $(CARGO_DENY) --locked --root $(CACHE)/tools

check: setup ## Check formatting, lints, documentation and dependencies
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@# With the workspace's optimisation, both share what they have checked of their dependencies.
	CARGO_PROFILE_DEV_OPT_LEVEL=0 cargo clippy --manifest-path fuzz/Cargo.toml --target-dir $(TARGET) --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
	cargo xtask tidy
	cargo deny --locked --log-level error check bans licenses sources

test: check ## Run check, then unit and integration tests
	cargo xtask upstream --only kube-apiserver,etcd --out $(TEST_BINARIES)
	cargo build --workspace --locked
	CONSTELLATION_KUBERNETES_BINARIES=$(TEST_BINARIES) cargo test --workspace --exclude e2e --locked

e2e: setup ## Run the node image, state disks and a cluster in VMs, with a host that attacks them
	cargo xtask upstream --out $(MIRROR)
	cargo xtask compile disk-vm-guest probe
	cargo xtask image reproduce --out $(E2E)/image
	cargo build --quiet --locked -p constellation
	cargo run --quiet --locked -p test-disk-vm --bin test-disk-vm -- --work $(E2E)/disks \
		--programs $(COMPILED) \
		--root "$$(cargo xtask image unpacked node)" --kernel-root "$$(cargo xtask image unpacked tools)"
	CONSTELLATION_E2E_IMAGE=$(E2E)/image CONSTELLATION_E2E_MIRROR=$(MIRROR) \
		cargo test --locked -p e2e --lib --test container_images --test node --test side_doors -- --test-threads=2 --nocapture
	CONSTELLATION_E2E_IMAGE=$(E2E)/image CONSTELLATION_E2E_MIRROR=$(MIRROR) \
		CONSTELLATION_E2E_PROBE=$(COMPILED)/probe CONSTELLATION_E2E_CLUSTER=$(E2E)/cluster \
		cargo test --locked -p e2e --test cluster -- --nocapture

up: setup ## Create a cluster on this machine from the current code, in the folder local/
	cargo xtask upstream --out $(MIRROR)
	cargo xtask image build --out $(IMAGE)
	$(CONSTELLATION) mini up --image $(IMAGE) --mirror $(MIRROR)
	$(CONSTELLATION) verify
	$(MIRROR)/bin/kubectl --kubeconfig local/constellation-admin.conf get nodes -o wide
	$(MIRROR)/bin/kubectl --kubeconfig local/constellation-admin.conf get pods -A

down: ## Terminate that cluster and remove its files
	$(CONSTELLATION) mini down --yes

bench: setup ## Measure, and print the figures with their aims
	cargo xtask upstream --only kube-apiserver,etcd --out $(TEST_BINARIES)
	cargo xtask image build --out $(E2E)/image
	@mkdir -p $(BENCH)
	cargo bench --locked -p attested-tls --bench handshake > $(BENCH)/1-handshakes
	cargo bench --locked -p attested-tls --bench appraisal > $(BENCH)/2-appraisal
	CONSTELLATION_KUBERNETES_BINARIES=$(TEST_BINARIES) CONSTELLATION_PROGRAMS=$(COMPILED) \
		CONSTELLATION_E2E_IMAGE=$(E2E)/image CONSTELLATION_WORKSPACE=$(CURDIR)/local \
		cargo bench --locked -p e2e --bench system > $(BENCH)/3-system
	@cat $(BENCH)/1-handshakes $(BENCH)/2-appraisal $(BENCH)/3-system
