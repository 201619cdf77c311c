# The controller's image. Builds with the classic builder too: nothing here needs BuildKit.
#
#   docker build --tag ottoscaler .
#
# What the base image has and a controller never uses, pip above all, is removed, and what is left is copied into an empty
# image. Removed in a layer on top of the base it would stay in the layer below, and every node would pull it.
ARG BASE=python:3.13-slim

FROM ${BASE} AS requirements
# without pip of its own: the one of the base image fills it
RUN python -m venv --without-pip /opt/venv
# true: also what the log forwarder needs, 22 MB; an image without it refuses LOG_HANDLER_ADDRESS
ARG LOGS=false
COPY requirements.txt ./
COPY ottoscaler/forwarder/requirements.txt logs.txt
COPY ottoscaler/adapters/traces-requirements.txt traces.txt
# Wheels only, every one with its hash, so there is no compiler. Then the asynchronous half of the Kubernetes client is
# removed, which nothing here imports and which is as large as all the rest.
# The root file system is read-only later, so bytecode is made now: of what is imported, and of nothing else. The base
# image has none for the standard library, and each start would compile it.
RUN python -m pip --python /opt/venv/bin/python install --quiet --disable-pip-version-check --no-cache-dir --no-compile \
        --only-binary :all: --require-hashes --requirement requirements.txt --requirement traces.txt \
        $([ "$LOGS" = true ] && echo --requirement logs.txt) \
 && rm -r /opt/venv/lib/python3*/site-packages/kubernetes/aio requirements.txt logs.txt traces.txt \
 && find / -xdev -path '*/python3*' \( -name __pycache__ -o -name tests \) -prune -exec rm -r {} + \
 && /opt/venv/bin/python -c 'import argparse, difflib, fcntl, fractions, gc, http.server, resource, shlex, tempfile; \
import msgspec, prometheus_client.core, pythonjsonlogger.json, redis.sentinel, rich.live, rich.progress, tenacity; \
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2; \
from kubernetes import client, config; client.ApiClient(client.Configuration())' \
 && if [ "$LOGS" = true ]; then /opt/venv/bin/python -c 'import aiohttp, asyncio, grpc.aio, google.protobuf.message'; fi

FROM requirements AS program
WORKDIR /app
COPY ottoscaler.py ./
COPY ottoscaler ottoscaler
RUN python -m compileall -q .

FROM requirements AS base
RUN rm -r /opt/venv \
 && find / -xdev -path '*/python3*' \( -name ensurepip -o -name idlelib -o -name pydoc_data -o -name test -o -name tkinter \
        -o -name turtledemo -o -name dist-packages -o -name pip -o -name 'pip-*' \) -prune -exec rm -r {} + \
 && rm -rf /usr/bin/pip* /usr/local/bin/pip* /usr/local/bin/idle* /usr/local/bin/pydoc* /usr/share/python-wheels \
        /usr/share/locale /usr/share/man /var/cache /var/lib/apt/lists /var/log/* /root/.cache \
 && find /usr/share/doc -type f ! -name copyright -delete

FROM scratch
# first what rarely changes: a new build of ours is one small layer more
COPY --from=base / /
COPY --from=requirements /opt/venv /opt/venv
COPY --from=program /app /app
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# no memory kept for each thread by malloc: 3 KiB less for each live pod, and a sixth of the peak
ENV GLIBC_TUNABLES=glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1
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
