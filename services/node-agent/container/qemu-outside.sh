#!/bin/sh
# Runs QEMU outside of the container's control group, so that the end of the agent's container is
# not the end of its guests. Needs root, the host's process ids, and cgroups version 2.
outside=/sys/fs/cgroup/godwit
# The first process's namespace: from a container's own one the kernel lets nobody out.
move="test -f /sys/fs/cgroup/cgroup.controllers && mkdir -p $outside && echo $$ >$outside/cgroup.procs"
if ! nsenter --target 1 --cgroup -- sh -c "$move" 2>/dev/null; then
    echo "qemu-outside: this guest will end with the agent's container" >&2
fi
# The same process: the agent knows it by its id and start.
exec qemu-system-x86_64 "$@"
