# Made by bentoctl. What is edited here has no effect: `bentoctl containerize` renders it anew.
FROM --platform=$BUILDPLATFORM node:24-bookworm-slim AS packages
USER 0:0
WORKDIR /home/bentoml
COPY ["packages/", "/home/bentoml/"]
RUN --mount=type=cache,target=/var/cache/bentoctl,sharing=locked \
    --mount=type=bind,source=packages-step,target=/run/bentoctl-packages \
    set -eu; \
    exec node /run/bentoctl-packages/install.mts 'pnpm' '10.34.9' 'x64' /var/cache/bentoctl /run/bentoctl-packages/npmrc

FROM node:24-bookworm-slim
USER 0:0

ENV NODE_ENV="production"
ENV BENTO_PATH="/home/bentoml/bento"
ENV BENTOML_HOME="/home/bentoml"
ENV BENTOML_CONTAINERIZED="true"
ENV ORT_DISABLE_TELEMETRY="1"

COPY --from=packages ["/home/bentoml/node_modules/", "/home/bentoml/node_modules/"]
