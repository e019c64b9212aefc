# Everything happens in .venv; stamps in it say what is up to date, so `rm -rf .venv build` is a clean start.
#   make demo [CPU=kvm]   a VMM in Python boots over qnet and downloads a file
#   make test [ARGS=...]  all tests; ARGS are pytest's
#   make lint | bench | bench-peer | wheel | develop | asan | clean
PYTHON ?= python3
CPU ?= unicorn
ARGS ?=
BIN := .venv/bin
export PYTHON

SOURCES := setup.py pyproject.toml $(wildcard csrc/*.[ch]) $(shell find qnet -name '*.py[xd]')
PACKAGED := $(SOURCES) $(wildcard MANIFEST.in README.md LICENSE) $(shell find qnet -name '*.py' -o -name '*.pyi' -o -name py.typed)

.DELETE_ON_ERROR:
.PHONY: develop demo test lint bench bench-peer wheel asan clean

develop: .venv/built

demo: .venv/built .venv/demo
	@$(BIN)/python examples/vmm/demo.py --cpu $(CPU)

# The last line is pytest's summary.
test: .venv/built .venv/demo .venv/test
	@$(BIN)/pytest $(ARGS)

# stubtest runs from an empty directory, so that it sees the built modules as users do.
lint: .venv/built .venv/demo .venv/test .venv/lint
	$(BIN)/ruff check .
	PATH="$(BIN):$$PATH" $(BIN)/cython-lint qnet tests
	$(BIN)/mypy
	rm -rf build/empty && mkdir -p build/empty
	cd build/empty && ../../$(BIN)/python -m mypy.stubtest --ignore-disjoint-bases --allowlist ../../tools/stubtest-allowlist.txt \
	  $(shell find qnet -name '_*.pyx' | sed 's/\.pyx//; s,/,.,g' | sort)

bench: .venv/built .venv/test
	@$(BIN)/pytest bench --benchmark-enable --benchmark-only $(ARGS)

bench-peer: .venv/built .venv/test
	@$(BIN)/python bench/peer.py $(ARGS)

wheel: build/wheels

# The package with address and undefined behaviour sanitizer, beside the ordinary build, and the tests on it; QEMU runs without.
asan: .venv/test
	QNET_ASAN=1 $(BIN)/python setup.py -q build --build-base build/asan --build-lib build/asan/lib
	@mkdir -p build/asan/bin
	@printf '#!/bin/sh\nunset LD_PRELOAD\nexec %s "$$@"\n' "$$(command -v qemu-system-x86_64)" >build/asan/bin/qemu-system-x86_64
	@chmod +x build/asan/bin/qemu-system-x86_64
	PATH="$(CURDIR)/build/asan/bin:$$PATH" PYTHONPATH=build/asan/lib ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" $(BIN)/pytest -m "not slow" $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .cache
	find qnet -name '*.so' -delete

# --------------------------------------------------------------------------------------------------------------------- stamps

.venv/made:
	@tools/need venv
	@echo "python environment: .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -q --disable-pip-version-check 'pip>=25.1'
	@touch $@

# compat mode: under setuptools' default one, downstream cimports do not find the .pxd files (cython/cython #7326).
.venv/built: .venv/made .venv/group-build $(SOURCES)
	@mkdir -p build
	@case " $? " in *" setup.py "*) rm -rf build/cython ;; esac	# cythonize does not see changed options
	@echo "building qnet"
	@$(BIN)/pip install --no-build-isolation --config-settings editable_mode=compat -e . >build/install.log 2>&1 || { cat build/install.log; exit 1; }
	@touch $@

.venv/demo: .venv/group-demo
	@tools/need demo
	@touch $@

.venv/test: .venv/group-test .venv/group-demo
	@tools/need test
	@touch $@

.venv/lint: .venv/group-lint
	@touch $@

.venv/group-build: .venv/made pyproject.toml
	@tools/need build
	@echo "python packages: build"
	@$(BIN)/pip install -q --group build
	@touch $@

.venv/group-%: .venv/made pyproject.toml
	@echo "python packages: $*"
	@$(BIN)/pip install -q --group $*
	@touch $@

build/wheels: .venv/built .venv/group-wheel $(PACKAGED) tools/wheels.py
	$(BIN)/python tools/wheels.py dist
	@mkdir -p build && touch $@
