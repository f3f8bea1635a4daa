#!/usr/bin/env bash
# Builds the images with buildah, starts docker-compose.yml with podman-compose, moves a machine
# between the two hosts in containers, and takes everything down again. Needs root, buildah, podman
# and podman-compose. What can't be pulled must be there: see stand-ins.sh.
#
#   packaging/containers/try.sh [SERVICE...]   # the services of the Compose file; all but those
#                                              # that can't be had here
set -euo pipefail
cd "$(dirname "$0")/../.."

services=("$@")
[ $# -gt 0 ] || services=(postgres api-gateway scheduler migration-coordinator maintenance-service
    worker1 worker2 prometheus)

declare -A images=([services]=godwit/godwit [node-agent]=godwit/godwit-node-agent
    [node-agent-lab]=godwit/godwit-node-agent-lab [demo]=godwit/godwit-demo)
for target in services node-agent node-agent-lab demo; do
    echo "try: image ${images[$target]}" >&2
    BUILDAH_ISOLATION=chroot buildah build --layers --target "$target" -t "${images[$target]}" .
done

down() { podman-compose --profile demo down --volumes; }
trap down EXIT
echo "try: starting ${services[*]}" >&2
podman-compose up --no-build --detach "${services[@]}"
for service in "${services[@]}"; do
    for _ in $(seq 180); do
        health=$(podman inspect --format '{{.State.Health.Status}}' "godwit_${service}_1" || true)
        [ "$health" != healthy ] || break
        podman healthcheck run "godwit_${service}_1" >/dev/null || true
        sleep 1
    done
    echo "try: $service is $health" >&2
    [ "$health" = healthy ]
done
podman-compose --profile demo run --rm --no-deps demo
