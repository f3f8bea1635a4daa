#!/bin/sh
# Starts the machine of the examples and moves it once: the one-shot of docker-compose.yml.
# Takes the URL of the API; KUBECONFIG says who asks.
set -eu
server=$1
examples=${EXAMPLES:-/examples}
# Debian's kubectl caches what it learns, and this user has no home.
api() { kubectl --server "$server" --cache-dir /tmp/kube-cache "$@"; }

api apply -f "$examples/vm-rhel8-server-nfs.yaml"
until api get vmi rhel8-server-nfs >/dev/null 2>&1; do sleep 1; done
api wait --for=condition=Ready --timeout=300s vmi/rhel8-server-nfs
api get vmi rhel8-server-nfs

job=$(sed 's/name: migration-job$/generateName: demo-/' "$examples/migration-job.yaml" \
    | api create -f - -o name)
phase=
while [ "$phase" != Succeeded ]; do
    phase=$(api get "$job" -o jsonpath='{.status.phase}')
    if [ "$phase" = Failed ]; then
        api describe "$job"
        exit 1
    fi
    sleep 1
done
api get "$job"
api get vmi rhel8-server-nfs
