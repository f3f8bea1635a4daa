#!/usr/bin/env bash
# Builds the images with buildah, starts docker-compose.yml with podman-compose, moves a machine
# between the two hosts in containers, and takes everything down again. What can't be pulled must be
# there: see stand-ins.sh. Needs root and, on Debian 12:
#
#   apt-get install buildah podman runc catatonit
#   pip install podman-compose    # Debian's own, 1.0.3, can't read networks with addresses
#
#   packaging/containers/try.sh [SERVICE...]   # the services of the Compose file; all but those
#                                              # that can't be had here
set -euo pipefail
cd "$(dirname "$0")/../.."
case "$(podman-compose --version 2>/dev/null)" in
*" 1.0."*) echo "try: podman-compose 1.0 can't read docker-compose.yml: it needs 1.1 or newer" >&2; exit 64 ;;
esac

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
