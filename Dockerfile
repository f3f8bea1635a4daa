# syntax=docker/dockerfile:1
# Images from one build: `services` with the control plane and the godwit command, `node-agent` with
# QEMU, `node-agent-lab` with the lab's guest as well, and `demo`, which moves a machine of that lab.
# All are Debian 12, whose QEMU is 7.2.
#
#   docker build --target services -t godwit/godwit .
#   docker build --target node-agent -t godwit/godwit-node-agent .

FROM docker.io/library/rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
ARG BUILD_COMMIT=unknown
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked \
        -p godwit-api-gateway -p godwit-scheduler -p godwit-migration-coordinator \
        -p godwit-maintenance-service -p godwit-node-agent -p godwit-cli \
    && mkdir /out \
    && cp target/release/godwit target/release/godwit-api-gateway target/release/godwit-scheduler \
        target/release/godwit-migration-coordinator target/release/godwit-maintenance-service \
        target/release/godwit-node-agent /out/

FROM build AS guest
# The guest is made of Debian's own kernel and busybox.
RUN apt-get update
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo run --release --locked -p godwit-testkit --example lab_guest -- /guest

FROM docker.io/library/debian:12-slim AS services
# The api-gateway believes an OpenID issuer by the authorities of its host.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/godwit /out/godwit-api-gateway /out/godwit-scheduler \
    /out/godwit-migration-coordinator /out/godwit-maintenance-service /usr/local/bin/
RUN ln -s godwit /usr/local/bin/kubectl-godwit
# Where docker-compose.yml keeps the certificates; a new volume takes the owner from here.
RUN install -d -o 65532 -g 65532 /tls
# Few arenas: the services hold little memory and have few threads.
ENV MALLOC_ARENA_MAX=2
USER 65532:65532
CMD ["godwit", "--help"]

FROM docker.io/library/debian:12-slim AS demo
RUN apt-get update \
    && apt-get install -y --no-install-recommends kubernetes-client \
    && rm -rf /var/lib/apt/lists/*
COPY --chmod=0755 examples/demo.sh /usr/local/bin/demo
USER 65532:65532
CMD ["demo", "https://api-gateway:6443"]

FROM docker.io/library/debian:12-slim AS node-agent
RUN apt-get update \
    && apt-get install -y --no-install-recommends iproute2 qemu-system-x86 qemu-utils \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/godwit-node-agent /usr/local/bin/
COPY --chmod=0755 services/node-agent/container/qemu-outside.sh /usr/local/bin/qemu-outside
ENV MALLOC_ARENA_MAX=2
CMD ["godwit-node-agent", "--help"]

FROM node-agent AS node-agent-lab
COPY --from=guest /guest /usr/share/godwit/lab-guest
