# Made by bentoctl. What is edited here has no effect: `bentoctl containerize` renders it anew.
FROM node:24-bookworm-slim
USER 0:0

ENV NODE_ENV="production"
ENV BENTO_PATH="/home/bentoml/bento"
ENV BENTOML_HOME="/home/bentoml"
ENV BENTOML_CONTAINERIZED="true"
ENV ORT_DISABLE_TELEMETRY="1"

RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    set -eu; \
    mv /etc/apt/apt.conf.d/docker-clean /tmp/ 2>/dev/null || true; \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        'curl' \
        'libgomp1=12.2.0-14' \
    ; \
    mv /tmp/docker-clean /etc/apt/apt.conf.d/ 2>/dev/null || true; \
    rm -rf /var/log/apt /var/log/dpkg.log /var/log/alternatives.log \
        /var/cache/ldconfig/aux-cache /var/cache/debconf/*-old /var/lib/dpkg/*-old
