#!/bin/sh
# Runs inside the fresh root file system (chroot), once, to turn a minimal Debian into a node.
set -eu
useradd --create-home --shell /bin/bash op
mkdir -p /var/lib/systemd/linger /var/log/journal /opt/archy/src /opt/archy/site
touch /var/lib/systemd/linger/op
chown op:op /opt/archy/src

systemctl set-default multi-user.target
mkdir -p /etc/systemd/system/multi-user.target.wants
ln -sf /usr/lib/systemd/system/network-online.target /etc/systemd/system/multi-user.target.wants/network-online.target
# What would reach for the host's devices, clock or kernel settings, or start work nobody asked for.
systemctl mask \
    systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service \
    systemd-sysctl.service systemd-modules-load.service systemd-binfmt.service systemd-random-seed.service \
    systemd-networkd-wait-online.service systemd-timesyncd.service systemd-firstboot.service \
    proc-sys-fs-binfmt_misc.automount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
    getty@.service console-getty.service getty.target \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    podman-auto-update.timer
systemctl --global mask podman-auto-update.timer

# Every node gets an identity of its own at boot.
: > /etc/machine-id
rm -f /var/lib/dbus/machine-id /etc/hostname
apt-get clean
rm -rf /var/lib/apt/lists/* /usr/share/doc/* /usr/share/man/*
