#!/usr/bin/env bash
# Two machines on one: runs a program under mpirun on two "hosts", each a network namespace with a
# name of its own, joined by a cable (a veth pair) and by nothing else.
#
#   scripts/two_hosts.sh [mpirun's arguments] PROGRAM …
#
# Each host has a rank for each of its cores; say -n for fewer. Needs root, ip (Debian: iproute2) and
# Open MPI, whose mpirun MPIEXEC may name; exits 77 where namespaces cannot be made. Its last line
# on stderr tells what went over the cable, which is cut when the file $CUT appears, if CUT names one.
set -euo pipefail

mpirun=${MPIEXEC:-mpirun}
if [[ $("$mpirun" --version) != *Open* ]]; then
    echo "skipped: $mpirun is not that of Open MPI" >&2
    exit 77
fi
tag=bitnet-$$
a=$tag-a b=$tag-b net=10.77.$(($$ % 250))
work=$(mktemp -d)
cleanup() {
    for host in "$a" "$b"; do
        ip netns pids "$host" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
        ip netns delete "$host" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap cleanup EXIT

{ ip netns add "$a" && ip netns add "$b" &&
    ip link add "veth$$a" netns "$a" type veth peer name "veth$$b" netns "$b"; } 2>/dev/null || {
    echo "skipped: network namespaces cannot be made here (root? iproute2?)" >&2
    exit 77
}
up() {
    ip -n "$1" address add "$net.$3/24" dev "$2"
    ip -n "$1" link set "$2" up
    ip -n "$1" link set lo up
}
up "$a" "veth$$a" 1
up "$b" "veth$$b" 2

# How mpirun reaches a host: not by ssh but by entering its namespace, under a name of its own.
cat >"$work/agent" <<AGENT
#!/bin/sh
shift # the host's address: there is only one other
exec ip netns exec $b unshare --uts sh -c 'hostname $b && exec sh -c "\$*"' - "\$@"
AGENT
chmod +x "$work/agent"
cores=$(nproc)
printf '%s slots=%s\n' "$net.1" "$cores" "$net.2" "$cores" >"$work/hosts"

if [ -n "${CUT:-}" ]; then
    (while [ ! -e "$CUT" ]; do sleep 0.05; done
     ip -n "$b" link set "veth$$b" down && date +%s.%N >"$CUT.at") &
fi

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
mesh="--mca btl self,vader,tcp --mca btl_tcp_if_include $net.0/24 --mca oob_tcp_if_include $net.0/24"
set +e
ip netns exec "$a" unshare --uts sh -c "hostname $a && exec \"\$@\"" - \
    "$mpirun" --hostfile "$work/hosts" --map-by node $mesh --mca plm_rsh_agent "$work/agent" "$@"
code=$?
ip -n "$a" -s -j link show "veth$$a" 2>/dev/null | python3 -c '
import json, sys
stats = json.load(sys.stdin)[0]["stats64"]
mega = lambda way: "%.1f MB" % (stats[way]["bytes"] / 1e6)
print("over the cable:", mega("tx"), "there,", mega("rx"), "back", file=sys.stderr)' || true
exit "$code"
