# Made by bentoctl. What is edited here has no effect: `bentoctl containerize` renders it anew.
FROM node:24-bookworm-slim AS node-image

# The CUDA libraries are too large for the npm package: its own installer fetches them from NuGet.
FROM node-image AS onnxruntime-cuda
USER 0:0
WORKDIR /onnxruntime
RUN --mount=type=cache,target=/root/.npm,sharing=locked \
    --mount=type=bind,source=build-env,target=/run/bentoctl-env \
    set -eu; \
    . /run/bentoctl-env/env; \
    npm install --ignore-scripts --no-audit --no-fund onnxruntime-node@1.30.0; \
    ONNXRUNTIME_NODE_INSTALL=cuda12 node node_modules/onnxruntime-node/script/install.js

FROM --platform=$BUILDPLATFORM node:24-bookworm-slim AS packages
USER 0:0
WORKDIR /home/bentoml
COPY ["packages/", "/home/bentoml/"]
RUN --mount=type=cache,target=/var/cache/bentoctl,sharing=locked \
    --mount=type=bind,source=packages-step,target=/run/bentoctl-packages \
    --mount=type=bind,source=build-env,target=/run/bentoctl-env \
    set -eu; \
    . /run/bentoctl-env/env; \
    exec node /run/bentoctl-packages/install.mts 'npm' '' 'x64' /var/cache/bentoctl /run/bentoctl-packages/npmrc

FROM nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04
COPY --from=node-image ["/usr/local/bin/node", "/usr/local/bin/node"]
USER 0:0

ENV NODE_ENV="production"
ENV BENTO_PATH="/home/bentoml/bento"
ENV BENTOML_HOME="/home/bentoml"
ENV BENTOML_CONTAINERIZED="true"
ENV ORT_DISABLE_TELEMETRY="1"
ENV A="1"

RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    --mount=type=bind,source=build-env,target=/run/bentoctl-env \
    set -eu; \
    . /run/bentoctl-env/env; \
    mv /etc/apt/apt.conf.d/docker-clean /tmp/ 2>/dev/null || true; \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        'curl' \
    ; \
    mv /tmp/docker-clean /etc/apt/apt.conf.d/ 2>/dev/null || true; \
    rm -rf /var/log/apt /var/log/dpkg.log /var/log/alternatives.log \
        /var/cache/ldconfig/aux-cache /var/cache/debconf/*-old /var/lib/dpkg/*-old

COPY --from=packages ["/home/bentoml/node_modules/", "/home/bentoml/node_modules/"]

RUN --mount=type=bind,source=setup,target=/run/bentoctl-setup \
    --mount=type=bind,source=build-env,target=/run/bentoctl-env \
    set -eu; \
    . /run/bentoctl-env/env; \
    exec /run/bentoctl-setup/script

COPY --from=onnxruntime-cuda \
    ["/onnxruntime/node_modules/onnxruntime-node/bin/napi-v6/linux/x64/libonnxruntime_providers_cuda.so", \
    "/onnxruntime/node_modules/onnxruntime-node/bin/napi-v6/linux/x64/libonnxruntime_providers_shared.so", \
    "/opt/bentoctl/node_modules/onnxruntime-node/bin/napi-v6/linux/x64/"]
