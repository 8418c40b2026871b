# Every command that a reader or continuous integration runs. `make demo` and `make test` are the two to know.
#
# What a bare Debian machine with a Rust toolchain lacks (cmake, a C compiler, Python's venv, Chromium) is installed first: by apt
# where possible, else for this folder only.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo compare replay test test-vllm check bench routing soak micro tools

TOOLS := $(CURDIR)/.venv-tools
OPENAI := .venv-openai
LMCACHE := .venv-lmcache
VLLM := .venv-vllm
SOAK ?= 1h
export PATH := $(TOOLS)/bin:$(PATH)

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: tools ## run the gateway before an embedded fleet, and show what it does
	cargo run -- demo

compare: tools ## unique prompts against repeated ones through the demo's gateway, in numbers
	cargo run -- compare --demo --json benches/results/compare.json

replay: tools ## real traffic over simulated engines: what each policy would give (about 10 minutes)
	cargo build --release
	for trace in conversation synthetic; do for offload in "" "--offload 4000000"; do \
	  name=benches/results/replay-$$trace$${offload:+-offload}; \
	  cargo run --release --quiet -- replay --trace tests/data/traces/mooncake_$$trace.jsonl $$offload --load 0.5,0.8,0.95 \
	    --json $$name.json --chart $$name.svg || exit 1; \
	done; done

test: tools $(OPENAI)/ready $(LMCACHE)/ready ## run all tests
	@.ci/install chromium
	cargo test --workspace

test-vllm: tools $(LMCACHE)/ready $(VLLM)/ready ## tests against a real vLLM on the CPU (installs 6 GB)
	cargo test --test it real::vllm -- --ignored

check: tools ## format, lints, documentation, shipped configurations
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --quiet
	cargo build --workspace --tests --quiet # as `make test` does, so that nothing is built twice
	for file in conf/kvway.yaml conf/demo.yaml conf/examples/two-models.yaml conf/examples/lmcache.yaml; do target/debug/kvway check -c $$file > /dev/null || exit 1; done
	KVWAY_ADMIN_TOKEN=x VLLM_API_KEY=x target/debug/kvway check -c conf/examples/api-keys.yaml > /dev/null

bench: tools ## what kvway costs beside nginx, HAProxy, bare Pingora and SGLang's router (about 20 minutes; QUICK=1: two)
	@.ci/install nginx
	@.ci/install haproxy
	@.ci/install sglang-router
	cargo build --release --workspace
	target/release/kvway-bench compare-proxies $(if $(QUICK),--quick --out target/proxies-quick.json,--out benches/results/proxies.json) \
	  --revision "$$(git describe --always --dirty)" --date "$$(date -u +%F)"

routing: tools ## first-token times and cache hits of policies, before eight simulated engines (about 7 minutes)
	cargo build --release --workspace
	target/release/kvway-bench routing --out benches/results/routing.json \
	  --revision "$$(git describe --always --dirty)" --date "$$(date -u +%F)"

soak: tools ## kvway under moderate load for an hour (SOAK=10m: ten minutes): memory, files, threads
	cargo build --release --workspace
	target/release/kvway-bench soak --duration $(SOAK) --out benches/results/soak.json --html target/soak.html \
	  --revision "$$(git describe --always --dirty)" --date "$$(date -u +%F)"

micro: tools ## microbenchmarks of the pure stages: times, and instructions where valgrind is installed (under 10 minutes)
	cargo bench --bench micro --bench routing --bench stages --no-run
	@# The file is replaced at the end: if it were written on the way, the revision would always be a dirty one.
	out=$$(mktemp) && { \
	  echo "# $$(git describe --always --dirty), $$(date -u +%F), $$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2-), load $$(cut -d' ' -f1 /proc/loadavg)"; \
	  cargo bench --quiet --bench micro --bench routing --bench stages -- --output-format bencher 2>/dev/null | grep -E '^(test|#)'; \
	  cargo bench --quiet --bench stages -- --instructions 2>/dev/null | grep -E '^(test|#)'; } \
	  | tee $$out && cp $$out benches/results/micro.txt && rm $$out

tools:
	@.ci/install build

$(OPENAI)/ready: tests/python/requirements.txt
	@.ci/install python
	python3 -m venv $(OPENAI)
	$(OPENAI)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

$(LMCACHE)/ready: tests/real/lmcache/requirements.txt
	@.ci/install python
	python3 -m venv $(LMCACHE)
	$(LMCACHE)/bin/pip install --quiet --disable-pip-version-check --retries 10 --no-deps -r $<
	touch $@

$(VLLM)/ready: tests/real/vllm/install tests/real/vllm/requirements.txt tests/real/vllm/make_model.py
	@.ci/install python
	$< $(VLLM)
	touch $@
