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
COPY ["runtime/", "/opt/bentoctl/"]
COPY ["models/iris/v1/", "/home/bentoml/bento/models/iris/v1/"]
COPY ["bento/", "/home/bentoml/bento/"]

WORKDIR /home/bentoml/bento
EXPOSE 3000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=6 \
    CMD ["node", "/opt/bentoctl/healthcheck.js"]
LABEL "bentoctl.apis"="[{\"name\":\"classify\",\"route\":\"/classify\",\"input\":\"application/json\",\"output\":\"application/json\"}]"
LABEL "bentoctl.bento"="iris_classifier:u2swufhfec6rgax4"
LABEL "bentoctl.models"="[{\"tag\":\"iris:v1\",\"files\":{},\"signatures\":{}}]"
LABEL "bentoctl.onnxruntime"="1.30.0"
LABEL "bentoctl.sbom"="/home/bentoml/bento/sbom.cdx.json"
LABEL "bentoctl.service"="service.ts:svc"
LABEL "bentoctl.version"="0.1.0"
LABEL "org.opencontainers.image.base.name"="nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04"
LABEL "org.opencontainers.image.created"="2026-01-02T03:04:05.678901Z"
LABEL "org.opencontainers.image.description"="Iris"
LABEL "org.opencontainers.image.title"="iris_classifier"
LABEL "org.opencontainers.image.version"="u2swufhfec6rgax4"
LABEL "owner"="team a"
USER 1034:1034
ENTRYPOINT ["node", "--max-semi-space-size=16", "/opt/bentoctl/entrypoint.js"]
