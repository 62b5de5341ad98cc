# CPU:   docker build -t fedddp .   (--build-arg TORCH_INDEX=URL of PyTorch's CPU builds makes a smaller image)
# CUDA:  docker build -t fedddp --build-arg TORCH_INDEX=URL .   (the package index of PyTorch's builds for your CUDA version)
# Then:  docker run --rm -v "$PWD/runs:/work/runs" fedddp train --run.rounds=3        (CUDA: --gpus all --shm-size=8g)
FROM python:3.12-slim

# Which build of torch: that of the package index at this address; without one, pip's own choice.
ARG TORCH_INDEX=
RUN pip install --no-cache-dir torch torchvision ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY fedddp fedddp
RUN pip install --no-cache-dir ".[privacy]" && rm -rf /src

# Ranks of one container find each other on loopback; each rank uses one thread unless run.threads says otherwise.
ENV OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
# The number of the user is in launch/k8s, too.
RUN useradd --create-home --uid 1000 fedddp && mkdir -p /work/runs && chown -R fedddp /work
USER fedddp
WORKDIR /work
ENTRYPOINT ["fedddp"]
CMD ["--help"]
