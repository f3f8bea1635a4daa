#!/bin/busybox sh
# Takes what the DHCP server gave.
case "$1" in
bound | renew)
    ip address add "$ip/${mask:-24}" dev "$interface"
    [ -n "$router" ] && ip route add default via "${router%% *}"
    ;;
esac
