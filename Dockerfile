# The production image (target runtime, the default) and the image whose pod runs `nox -s e2e` (target test-runner).
# docs/image.md says what is in them and why. Nothing here needs BuildKit; the base needs python3 with its venv module.
ARG BASE_IMAGE=python:3.12-slim-bookworm


FROM ${BASE_IMAGE} AS tools
ARG UV_VERSION=0.13.9
ARG INDEX_URL=
ENV PATH=/opt/uv/bin:$PATH UV_NO_CACHE=1 UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy \
    PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 PYC_INVALIDATION_MODE=UNCHECKED_HASH
WORKDIR /build
COPY pyproject.toml uv.lock tier3/image/stages.sh build-ca.pe[m] ./
RUN /bin/sh stages.sh tools "$UV_VERSION"


# The locked dependencies. Built anew when they change, and for nothing else.
FROM tools AS dependencies
ARG INDEX_URL=
RUN /bin/sh stages.sh locked


# The service, beside its dependencies rather than among them, so that a change of source copies no more than itself.
FROM dependencies AS service
COPY README.md LICENSE run.sh ./
COPY migrations ./migrations
COPY services ./services
RUN /bin/sh stages.sh service


FROM ${BASE_IMAGE} AS runtime
COPY --from=dependencies /layers/locked /
COPY --from=service /layers/service /
ENV PATH=/app/.venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-I", "-c", "import os, urllib.request as u; \
u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + (os.environ.get('PORT') or '8080') + '/health', timeout=4)"]
ENTRYPOINT ["/app/run.sh"]


FROM tools AS test-dependencies
ARG INDEX_URL=
RUN /bin/sh stages.sh locked --only-group e2e


FROM ${BASE_IMAGE} AS test-runner
COPY --from=test-dependencies /layers/locked /
COPY noxfile.py pyproject.toml /app/
COPY tier3 /app/tier3
COPY tests /app/tests
# nox finds all in place: it makes no environment and asks no index.
ENV PATH=/app/.venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NOX_DEFAULT_VENV_BACKEND=none NOX_SCRIPT_MODE=none
WORKDIR /app
USER 65532:65532
CMD ["nox", "-s", "e2e"]


# The default is the last stage, and the classic builder builds all stages before its target.
FROM runtime
