#!/bin/sh
# First process of a node: in fresh namespaces (mount, pid, uts, ipc, net, cgroup), it turns ROOT into / and becomes systemd.
# usage: boot.sh ROOT HOSTNAME ADDRESS GATEWAY MACHINE_ID; says "ready" on stdout and waits for a line on stdin, by when
# the keeper has put a network device into this namespace. stderr is the node's console.
set -eu
root=$1 name=$2 address=$3 gateway=$4 machine=$5

mount --make-rprivate /
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
# Fresh, whatever mix of v1 and v2 the host has mounted.
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
for folder in run tmp dev; do mount -t tmpfs -o mode=755 tmpfs "$root/$folder"; done
chmod 1777 "$root/tmp"
# A /dev of its own: the host's nodes for tun and fuse are closed to ordinary users, and there is no hardware to show.
mkdir -p "$root/dev/net" "$root/dev/pts" "$root/dev/shm"
for device in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0" "fuse 10 229" "net/tun 10 200"; do
    # shellcheck disable=SC2086 # three words, on purpose
    set -- $device
    mknod -m 666 "$root/dev/$1" c "$2" "$3"
    chmod 666 "$root/dev/$1"
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"

echo "$name" > "$root/etc/hostname"
echo "$machine" > "$root/etc/machine-id"
printf '127.0.0.1 localhost\n%s %s\n' "$address" "$name" > "$root/etc/hosts"

echo ready
exec >&2
read -r _
exec </dev/null

cd "$root"
pivot_root . mnt
umount -l /mnt
mount --make-rshared /
hostname "$name"
ip link set lo up
ip address add "$address/30" dev up0
ip link set up0 up
ip route add default via "$gateway"
mkdir -p /sys/fs/cgroup/lab
exec env -i container=lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /sbin/init systemd.log_target=journal
