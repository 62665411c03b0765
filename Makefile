# `make help` lists the commands.
#
# PyTorch comes from wherever pip is set up to find it. On Linux a plain pip brings a CUDA build of several GB;
# pytorch.org tells how to point pip at the CPU builds, for instance with PIP_EXTRA_INDEX_URL.

PYTHON ?= python3
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

# Tests start many processes. What pip did not compile, and ComfyUI, Python compiles once, not in each of them.
unexport PYTHONDONTWRITEBYTECODE

# What a part took is noted, and shown by `python -m dev.timed`.
TIMED = $(PYTHON) -m dev.timed $@

NEXT_FRONT_END := tests/workflows/test_next_front_end.py
NODES := tests/nodes $(filter-out $(NEXT_FRONT_END), $(wildcard tests/workflows/test_*.py))
PACK := tests/words $(addprefix tests/published/test_, installing.py other_packs.py published_pack.py) $(NEXT_FRONT_END)
IN_COMFYUI := $(NODES) $(PACK)

# Of tests/deepgen_npu: what a library pair cannot change, or others show on both pairs. A new file runs on both
# until it is entered here.
ON_ONE_PAIR := bench cli devices doctor doctor_hosts files hostile_hub image_files images import library_pairs locations \
	npu_setup npu_versions problem auto_dtype graphs property_arguments refused_downloads stopped_downloads \
	property_image_files property_references publishing baseline requirements signals sizes verify \
	quantize lora_option file kinds formats \
	boxes change composite demo_checkpoint editing fitting lines masks registration run \
	cards cluster connection pool resources worker \
	guidance mapping work \
	batch contact_sheet fingerprints folder image_headers local manifest names progress rows survey tables

# The newest torch_npu, and that of the adaptation report: the torch of each is the same three numbers. Others are tried
# by `make test-torch-npu TORCH_NPU=2.12.0`.
TORCH_NPU := 2.14.0 2.9.0

.PHONY: help demo demo-checkpoint format fast test lint test-comfyui test-nodes test-pack test-library test-ascend-pair \
	test-torch-npu \
	third-party-checks outside-checks release-checks environments comfyui-environments benchmark clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/runtime-installed  ## draw and edit images with the demo model on the CPU
	.venv/bin/python -m dev.demo

format: .venv/tests-installed  ## format the code, and fix what ruff can
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# What a change most often breaks, on one library pair, without a ComfyUI.
fast: lint  ## lint, types and the fast tests of the library: under two minutes
	$(TIMED) .venv/bin/python -m pytest -m "not slow" tests/deepgen_npu tests/test_house.py

# With two cores, `make -j2 --keep-going --output-sync=target test` takes half as long (so does .ci/run): no part waits
# for another, and each is shown whole when it ends. Hence the longest first.
test: test-comfyui test-library test-ascend-pair lint  ## all tests, on both library pairs and in the oldest and newest ComfyUI

lint: .venv/tests-installed  ## ruff and pyright
	$(TIMED) .venv/bin/ruff check .
	$(TIMED) .venv/bin/ruff format --check .
	$(TIMED) .venv/bin/pyright

# What needs a ComfyUI: the server and its front end. ComfyUI 0.3.64 runs with the library pair of the Ascend stack.
# Before a release, DEEPGEN_ALL_COMFYUI=1 takes the versions between as well.
test-comfyui: .venv/tests-installed comfyui-environments  ## the tests that need a ComfyUI
	$(TIMED) .venv/bin/python -m pytest $(IN_COMFYUI)

# The same in two parts, for two cores.
test-nodes: .venv/tests-installed comfyui-environments
	$(TIMED) .venv/bin/python -m pytest $(NODES)

test-pack: .venv/tests-installed comfyui-environments
	$(TIMED) .venv/bin/python -m pytest $(PACK)

test-library: .venv/tests-installed  ## all other tests, on the newer library pair
	$(TIMED) .venv/bin/python -m pytest $(IN_COMFYUI:%=--ignore=%)

test-ascend-pair: .venv-ascend/tests-installed  ## the tests of the library on the library pair of the Ascend stack
	$(TIMED) .venv-ascend/bin/python -m pytest tests/deepgen_npu tests/npu/test_simulated.py \
		$(ON_ONE_PAIR:%=--ignore-glob='*/test_%.py')

# No card, and one whose memory is host memory: each in a process of its own. Stand-ins for CANN's libraries are compiled
# into build/torch_npu. Each release has a virtual environment for that alone: without the stand-ins not even `import
# torch` works. What users meet without CANN is tried on the first.
test-torch-npu: $(TORCH_NPU:%=test-torch-npu-%)  ## the tests on the real torch_npu; needs Linux, a C and a C++20 compiler

test-torch-npu-%: .venv-torch-npu-%/tests-installed
	$(TIMED) .venv-torch-npu-$*/bin/python -m dev.npu_simulator.run_tests \
		$(if $(filter $*,$(firstword $(TORCH_NPU))),,--ignore-glob='*/test_broken_installation.py')

third-party-checks: .venv-checks/installed comfyui-environments  ## third-party checkers on the published form of the pack
	$(TIMED) .venv-checks/bin/python -m dev.checks.third_party

outside-checks: third-party-checks

release-checks: .venv-checks/installed comfyui-environments  ## the same, with those that judge a release
	$(TIMED) .venv-checks/bin/python -m dev.checks.third_party --release

environments: .venv-ascend/tests-installed $(TORCH_NPU:%=.venv-torch-npu-%/tests-installed) .venv-checks/installed comfyui-environments

comfyui-environments: .venv/tests-installed
	$(TIMED) .venv/bin/python -m dev.comfyui_environments

# Each stage goes on where an earlier run was stopped; where it was done it only writes its result again.
demo-checkpoint: .venv/tests-installed  ## train the demo model from nothing: under two hours on two cores
	for stage in create vae text latents dit decoder evaluate publish; do .venv/bin/python -m training $$stage || exit 1; done

benchmark: .venv/tests-installed  ## memory and time of loading a model
	.venv/bin/python -m dev.speed loading

.venv/runtime-installed: requirements.txt dev/requirements/constraints.txt
	@echo "Installing PyTorch and the libraries into .venv, which takes some minutes the first time ..."
	$(PYTHON) -m venv .venv
	$(TIMED) .venv/bin/python $(PIP_INSTALL) -c dev/requirements/constraints.txt torch numpy Pillow tqdm -r requirements.txt
	touch $@

.venv/tests-installed: .venv/runtime-installed dev/requirements/dev.txt
	$(TIMED) .venv/bin/python $(PIP_INSTALL) -c dev/requirements/constraints.txt -r dev/requirements/dev.txt
	touch $@

# These have most of their packages from .venv, compiled already; of the others Python compiles what is imported.
.venv-ascend/tests-installed: requirements.txt dev/requirements/dev.txt dev/requirements/constraints-ascend.txt | .venv/tests-installed
	$(PYTHON) -m venv .venv-ascend
	$(TIMED) .venv/bin/python -m dev.link_packages .venv-ascend dev/requirements/constraints-ascend.txt dev/requirements/dev.txt
	$(TIMED) .venv-ascend/bin/python $(PIP_INSTALL) --no-compile -c dev/requirements/constraints-ascend.txt -r dev/requirements/dev.txt
	touch $@

# torch is the one of the release. Where pip finds no CPU build of it, 0.5 to 0.9 GB are downloaded, but none of the
# packages of CUDA that it asks for (--no-deps): torch_npu_build.py has stand-ins for them.
.venv-torch-npu-%/tests-installed: requirements.txt dev/requirements/torch-npu-test.txt \
		dev/requirements/constraints-ascend.txt | .venv/tests-installed
	$(PYTHON) -m venv .venv-torch-npu-$*
	$(TIMED) .venv/bin/python -m dev.link_packages .venv-torch-npu-$* dev/requirements/constraints-ascend.txt \
		dev/requirements/torch-npu-test.txt
	$(TIMED) .venv-torch-npu-$*/bin/python $(PIP_INSTALL) --no-compile -c dev/requirements/constraints-ascend.txt \
		-r dev/requirements/torch-npu-test.txt
	$(TIMED) .venv-torch-npu-$*/bin/python $(PIP_INSTALL) --no-compile --no-deps torch==$* torch_npu==$*
	touch $@

.venv-checks/installed: dev/requirements/checks.txt
	$(PYTHON) -m venv .venv-checks
	$(TIMED) .venv-checks/bin/python $(PIP_INSTALL) --no-compile -r dev/requirements/checks.txt
	touch $@

clean:  ## remove virtual environments and what was built
	rm -rf .venv .venv-ascend .venv-torch-npu* .venv-checks build/torch_npu .venv-comfyui-* demo .pytest_cache .ruff_cache *.egg-info dist
