#!/bin/sh
# Before the kernel is installed: what its initrd shall hold. The disk and the
# network are virtio, the root file system is ext4, the power button is ACPI's.
set -eu
root=$1
mkdir -p "$root/etc/initramfs-tools/conf.d"
cat > "$root/etc/initramfs-tools/conf.d/ktcw" <<CONF
MODULES=list
BUSYBOX=auto
COMPRESS=zstd
FSTYPE=ext4
RESUME=none
CONF
printf '%s\n' virtio_pci virtio_blk virtio_net virtio_rng ext4 button > "$root/etc/initramfs-tools/modules"
