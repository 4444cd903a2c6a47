# segue with everything that encoding, training, generating and upsampling need.
#
#   docker build -t segue .                                   CPU: the newest PyTorch for slim Python
#   docker build -t segue --build-arg TORCH_INDEX=ADDRESS .   the CPU build alone: ADDRESS as PyTorch's install page names it
#   docker build -t segue --build-arg BASE=pytorch/pytorch:2.7.1-cuda12.6-cudnn9-runtime .   CUDA, with its own PyTorch
#   docker run --rm -v "$PWD:/work" segue generate "a soft violin playing C 5"     (with a GPU: --gpus all)
ARG BASE=python:3.12-slim-bookworm
# hadolint ignore=DL3006
FROM ${BASE}

ARG TORCH_INDEX=""
ARG EXTRAS="train"
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
# PyTorch first, and only where the base has none: as a dependency, pip might choose another build.
# hadolint ignore=DL3013
RUN if ! python -c "import torch" 2>/dev/null; then pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch; fi \
    && pip install ".[$EXTRAS]" \
    && useradd --create-home --uid 1000 user
USER 1000
WORKDIR /work
ENTRYPOINT ["segue"]
CMD ["--help"]
