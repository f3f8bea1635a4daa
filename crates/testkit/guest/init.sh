#!/bin/busybox sh
# First process of the Linux guest: devices, modules, address, then the program, then power off.
/bin/busybox mkdir -p /bin /sbin /usr/bin /usr/sbin /proc /sys /dev /tmp
/bin/busybox --install -s
export PATH=/sbin:/bin:/usr/sbin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
exec </dev/console >/dev/console 2>&1
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "godwit: cannot load $module"
done
for word in $(cat /proc/cmdline); do
    case "$word" in
    godwit.ip=*) ip="${word#godwit.ip=}" ;;
    godwit.gw=*) gw="${word#godwit.gw=}" ;;
    esac
done
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    case "$ip" in
    '') ;;
    dhcp) udhcpc -i eth0 -q -n -t 5 -s /dhcp.sh ;;
    *)
        ip address add "$ip" dev eth0
        # Nobody need ask first: hosts learn a guest's address from what it sends.
        arping -A -c 1 -I eth0 "${ip%/*}" >/dev/null
        ;;
    esac
    [ -n "$gw" ] && ip route add default via "$gw"
fi
hostname godwit
/guest
sync
poweroff -f
