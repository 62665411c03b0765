# make demo   draws and edits pictures with the demo model on the CPU, in a virtual environment of its own
# make test   everything that CI runs: lint, types, and the tests on both library pairs and in ComfyUI
# make test-torch-npu   the tests on the real torch_npu, on Linux, with neither a card nor CANN: stand-ins for CANN's
#   libraries are compiled into build/torch_npu, so a C and a C++20 compiler are needed. Its virtual environment is for
#   that alone: without the stand-ins not even `import torch` works in it.
# make outside-checks   the checkers of others (comfy-cli, comfy-test, comfy-lint, comfy-import-guard, nodesafe) on the
#   pack as the registry publishes it, in a virtual environment of their own
# make demo-checkpoint   trains the demo model from nothing: under two hours on two cores
#
# PyTorch comes from wherever pip is set up to find it. On Linux a plain pip brings a CUDA build of several GB;
# pytorch.org tells how to point pip at the CPU builds, for instance with PIP_EXTRA_INDEX_URL.

PYTHON ?= python3
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: demo demo-checkpoint test lint test-library test-ascend-pair test-torch-npu outside-checks \
	comfyui-environments benchmark clean

demo: .venv/runtime-installed
	.venv/bin/python scripts/demo.py

test: lint test-library test-ascend-pair

lint: .venv/tests-installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

# The newer library pair, and the tests that need a ComfyUI.
test-library: .venv/tests-installed comfyui-environments
	.venv/bin/python -m pytest

# The library pair of the Ascend stack. ComfyUI 0.3.64 runs with it in the tests above.
test-ascend-pair: .venv-ascend/tests-installed
	.venv-ascend/bin/python -m pytest tests/deepgen_npu

# No card, and one whose memory is host memory: each in a process of its own.
test-torch-npu: .venv-torch-npu/tests-installed
	.venv-torch-npu/bin/python tests/real_torch_npu/run.py

outside-checks: .venv-checks/installed comfyui-environments
	.venv-checks/bin/python scripts/outside_checks.py

comfyui-environments: .venv/tests-installed
	.venv/bin/python scripts/make_comfyui_environments.py

# Each stage goes on where an earlier run was stopped; where it was done it only writes its result again.
demo-checkpoint: .venv/tests-installed
	for stage in create vae text latents dit decoder evaluate publish; do .venv/bin/python -m training $$stage || exit 1; done

benchmark: .venv/tests-installed
	.venv/bin/python scripts/bench_load.py

.venv/runtime-installed: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) -c constraints.txt torch numpy Pillow tqdm -r requirements.txt
	touch $@

.venv/tests-installed: .venv/runtime-installed requirements-dev.txt
	.venv/bin/python $(PIP_INSTALL) -c constraints.txt -r requirements-dev.txt
	touch $@

.venv-ascend/tests-installed: requirements.txt requirements-dev.txt constraints-ascend.txt
	$(PYTHON) -m venv .venv-ascend
	.venv-ascend/bin/python $(PIP_INSTALL) -c constraints-ascend.txt -r requirements-dev.txt
	touch $@

# torch_npu is the release that belongs to the torch of constraints-ascend.txt, whose build stays as it is (--no-deps).
.venv-torch-npu/tests-installed: requirements.txt requirements-torch-npu-test.txt constraints-ascend.txt
	$(PYTHON) -m venv .venv-torch-npu
	.venv-torch-npu/bin/python $(PIP_INSTALL) -c constraints-ascend.txt -r requirements-torch-npu-test.txt
	.venv-torch-npu/bin/python $(PIP_INSTALL) --no-deps torch_npu==2.13.0
	touch $@

.venv-checks/installed: requirements-checks.txt
	$(PYTHON) -m venv .venv-checks
	.venv-checks/bin/python $(PIP_INSTALL) -r requirements-checks.txt
	touch $@

clean:
	rm -rf .venv .venv-ascend .venv-torch-npu .venv-checks build/torch_npu .venv-comfyui-* demo .pytest_cache .ruff_cache
