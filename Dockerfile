# docker build -t YOUR-REGISTRY/atose_ray:0.1.0 .
#
# One image for every node of a cluster (cluster/README.md) and for single commands:
#   docker run --rm --gpus all -v "$PWD:/home/ray/here" YOUR-REGISTRY/atose_ray:0.1.0 \
#     python -m atose_ray.tune demo --store here/atose_store
# torch brings its own CUDA libraries; of the machine it needs the driver only, 580 or newer for CUDA 13.

FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
WORKDIR /build
COPY requirements.lock ./
COPY cluster/requirements.lock ./cluster/
RUN /opt/venv/bin/python -m pip install --no-cache-dir --no-deps -r requirements.lock -r cluster/requirements.lock \
    && /opt/venv/bin/python -m pip check
COPY pyproject.toml README.md LICENSE ./
COPY search_spaces ./search_spaces
COPY atose_ray ./atose_ray
RUN /opt/venv/bin/python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist .
RUN /opt/venv/bin/python -m pip install --no-cache-dir --no-deps --no-index --find-links dist atose_ray

FROM nvidia/cuda:13.0.1-base-ubuntu24.04
# openssh-client and rsync: the head starts and fills its workers; wget: KubeRay's probes; gcc and headers: Triton.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev openssh-client python3 python3-dev rsync wget \
    && rm -rf /var/lib/apt/lists/*
# User id 1000, as the first user of the machines has: `ray up` copies files under that id. The base image's own goes.
RUN if id ubuntu; then userdel --remove ubuntu; fi \
    && useradd --uid 1000 --create-home --home-dir /home/ray --shell /bin/bash ray
# A login shell, which `ray up` uses, forgets PATH.
RUN echo 'export PATH=/opt/venv/bin:$PATH' > /etc/profile.d/atose_ray.sh
COPY --from=build /opt/venv /opt/venv
USER ray
WORKDIR /home/ray
# The token is mounted into .ray, which must exist as the user's own.
RUN mkdir -m 700 /home/ray/.ray
# HOME in words: `ray up` reads it from here. With RAY_AUTH_MODE no node starts without a token.
ENV HOME=/home/ray PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# For a node: whether raylet and (on the head) GCS answer. Not meant for single commands (docker run --no-healthcheck).
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:52365/api/healthz', timeout=8)"]
CMD ["python", "-m", "atose_ray"]
