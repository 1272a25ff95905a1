# Made by bentoctl. What is edited here has no effect: `bentoctl containerize` renders it anew.
FROM node:24-bookworm-slim
USER 0:0

ENV NODE_ENV="production"
ENV BENTO_PATH="/home/bentoml/bento"
ENV BENTOML_HOME="/home/bentoml"
ENV BENTOML_CONTAINERIZED="true"
ENV ORT_DISABLE_TELEMETRY="1"

COPY ["runtime/", "/opt/bentoctl/"]
COPY ["models/iris/v1/", "/home/bentoml/bento/models/iris/v1/"]
COPY ["bento/src/", "/home/bentoml/bento/src/"]
COPY ["metadata/", "/home/bentoml/bento/"]

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
LABEL "org.opencontainers.image.base.name"="node:24-bookworm-slim"
LABEL "org.opencontainers.image.created"="2026-01-02T03:04:05.678901Z"
LABEL "org.opencontainers.image.description"="Iris"
LABEL "org.opencontainers.image.title"="iris_classifier"
LABEL "org.opencontainers.image.version"="u2swufhfec6rgax4"
LABEL "owner"="team a"
USER 1034:1034
ENTRYPOINT ["node", "--max-semi-space-size=16", "/opt/bentoctl/entrypoint.js"]
