# ComfyUI with this pack on an Ascend card: docs/ascend.md says how to build and run it.
#
# Ascend's images have CANN, the operators of one kind of card, torch and torch_npu. Their names are in
# github.com/Ascend/pytorch, docker/OVERVIEW.md and docker/supported_tags.md.

# 310p, 910b (Atlas A2), a3 (910C) or 950.
ARG CARD=910b
ARG CANN=9.1.0
ARG TORCH_NPU=2.12.0
# Or openeuler24.03.
ARG OS=ubuntu22.04
ARG PYTHON=3.12
ARG IMAGE=quay.io/ascend/torch-npu:${TORCH_NPU}-cann${CANN}-${CARD}-${OS}-py${PYTHON}

FROM ${IMAGE}

ARG TORCH_NPU
# All other packages, pinned; its torch and torch_npu are replaced by TORCH_NPU's.
ARG STACK=requirements-npu-cann9.1.txt
ARG TORCHVISION=0.27.0
ARG TORCHAUDIO=2.11.0
# The first with operators for Ascend. ComfyUI 0.33 asks for an older one, which would multiply int8 on the CPU.
ARG COMFY_KITCHEN=0.2.40
ARG COMFYUI=v0.33.0
ARG COMFYUI_REPOSITORY=https://github.com/comfyanonymous/ComfyUI.git
# CPU builds of torchvision: on x86 a plain pip takes CUDA builds. May be empty on aarch64.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# The user and the group of the host's driver: `id HwHiAiUser`.
ARG USER_ID=1000
ARG GROUP_ID=1000

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

RUN git clone --quiet --depth 1 --branch "${COMFYUI}" "${COMFYUI_REPOSITORY}" /ComfyUI
WORKDIR /ComfyUI

COPY ${STACK} stack.txt
RUN sed -i -e "s/^torch==.*/torch==${TORCH_NPU%.post*}/" -e "s/^torch_npu==.*/torch_npu==${TORCH_NPU}/" stack.txt \
    && grep -v '^comfy-kitchen' requirements.txt > comfyui.txt \
    && python3 -m pip install --no-cache-dir -r stack.txt -r comfyui.txt \
        "torchvision==${TORCHVISION}" "torchaudio==${TORCHAUDIO}" "comfy-kitchen==${COMFY_KITCHEN}" \
    && rm stack.txt comfyui.txt

COPY . custom_nodes/ComfyUI-DeepGen

# The driver lets the group HwHiAiUser use the card.
RUN groupadd --gid "${GROUP_ID}" HwHiAiUser \
    && useradd --uid "${USER_ID}" --gid HwHiAiUser --create-home HwHiAiUser \
    && mkdir -p models/deepgen input output temp user \
    && chown HwHiAiUser:HwHiAiUser . \
    && chown -R HwHiAiUser:HwHiAiUser models input output temp user
USER ${USER_ID}:${GROUP_ID}

VOLUME ["/ComfyUI/models", "/ComfyUI/input", "/ComfyUI/output", "/ComfyUI/user"]
EXPOSE 8188

# Options are ComfyUI's, anything else is a command: docker run IMAGE bash.
ENTRYPOINT ["/bin/bash", "-c", "source /usr/local/Ascend/ascend-toolkit/set_env.sh && case \"${1:--}\" in -*) exec python3 main.py --listen 0.0.0.0 \"$@\" ;; *) exec \"$@\" ;; esac", "--"]
