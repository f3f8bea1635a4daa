#!/usr/bin/env bash
# Makes, from Debian's packages alone, the images that the Dockerfile and docker-compose.yml name,
# for a machine that can't reach their registries: the two bases, Postgres and Prometheus. Needs
# root, buildah, podman, debootstrap and this machine's Rust. An image that is there is kept.
#
#   packaging/containers/stand-ins.sh
set -euo pipefail

export BUILDAH_ISOLATION=chroot
debian=docker.io/library/debian:12-slim
rust=docker.io/library/rust:1.95-slim-bookworm
postgres=docker.io/library/postgres:15.10-bookworm
prometheus=docker.io/prom/prometheus:v2.55.1

missing() { ! podman image exists "$1"; }
say() { echo "stand-ins: $*" >&2; }

# A container of Debian with these packages.
with() {
    local container
    container=$(buildah from "$debian")
    buildah run "$container" -- sh -c \
        "apt-get update -qq && apt-get install -y -qq --no-install-recommends $* && apt-get clean" >&2
    echo "$container"
}

commit() {
    buildah commit --quiet "$1" "$2" >/dev/null
    buildah rm "$1" >/dev/null
}

if missing "$debian"; then
    say "$debian, by debootstrap"
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    debootstrap --variant=minbase --include=ca-certificates bookworm "$root"
    # Where this machine's packages come from, and whom it believes.
    rm -f "$root/etc/apt/sources.list"
    cp -r /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources "$root/etc/apt/" 2>/dev/null || true
    [ ! -f "$root/etc/apt/debian.sources" ] || mv "$root/etc/apt/debian.sources" "$root/etc/apt/sources.list.d/"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    tar -C "$root" -c . | podman import - "$debian"
fi

if missing "$rust"; then
    say "$rust, with this machine's Rust"
    container=$(with gcc libc6-dev git)
    mounted=$(buildah mount "$container")
    mkdir -p "$mounted/usr/local/rust" "$mounted/usr/local/cargo"
    cp -a "$(rustc --print sysroot)"/{bin,lib,libexec} "$mounted/usr/local/rust/"
    cp "${CARGO_HOME:-$HOME/.cargo}/config.toml" "$mounted/usr/local/cargo/" 2>/dev/null || true
    buildah umount "$container" >/dev/null
    buildah config --env CARGO_HOME=/usr/local/cargo \
        --env PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        "$container"
    commit "$container" "$rust"
fi

if missing "$postgres"; then
    say "$postgres, with Debian's"
    container=$(with postgresql-15 gosu)
    buildah copy --quiet --chmod 0755 "$container" "$(dirname "$0")/postgres-entrypoint.sh" \
        /usr/local/bin/docker-entrypoint.sh >/dev/null
    buildah config --entrypoint '["docker-entrypoint.sh"]' \
        --env PATH=/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        "$container"
    buildah config --cmd 'postgres -c listen_addresses=*' "$container"
    commit "$container" "$postgres"
fi

if missing "$prometheus"; then
    say "$prometheus, with Debian's"
    container=$(with prometheus wget)
    buildah run "$container" -- mkdir -p /prometheus
    buildah config --workingdir /prometheus --entrypoint '["/usr/bin/prometheus"]' "$container"
    buildah config --cmd '--config.file=/etc/prometheus/prometheus.yml' "$container"
    commit "$container" "$prometheus"
fi
podman images
