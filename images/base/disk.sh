#!/bin/sh
# Turns the unpacked Debian, our files, binaries and container images into the
# disk every node starts from. Runs like debian.sh, in namespaces of its own: all
# that is mounted here is gone when it ends, however it ends.
#
#   disk.sh WORK OUT ROOTFS.TAR
#
# WORK holds   archives/ (container images)  env; beside this script are overlay/ and units
# OUT holds    bin/ and receives base.qcow2  vmlinuz  initrd.img
set -eu
work=$1 out=$2 tarball=$3
here=$(dirname "$0")
# shellcheck source=/dev/null  # PAUSE_IMAGE, DISK_SIZE
. "$work/env"
root=$work/root
PATH=$PATH:/usr/sbin:/sbin

say() { echo "==> $*"; }

say "unpacking Debian"
mkdir -p "$root"
tar -xpf "$tarball" -C "$root" --numeric-owner --xattrs --xattrs-include='*'

say "laying our files over it"
( cd "$here/overlay" && find . -type f ) | while read -r file; do
  mode=0644
  case $file in */bin/* | */sbin/*) mode=0755 ;; esac
  mkdir -p "$root/$(dirname "$file")"
  rm -f "$root/$file"
  install -m "$mode" "$here/overlay/$file" "$root/$file"
done
sed -i "s|@PAUSE_IMAGE@|$PAUSE_IMAGE|" "$root/etc/containerd/config.toml"
for program in containerd containerd-shim-runc-v2 ctr; do
  install -m 0755 "$out/bin/$program" "$root/usr/local/bin/$program"
done

say "loading container images"
# podman wants / to be a mount point; everything else is what programs expect.
mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/tmp"
mount --bind "$root" "$root"
mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
# podman keeps its locks here: ours must not be the builder's, nor stay behind.
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mkdir "$root/tmp/archives"
mount --bind "$work/archives" "$root/tmp/archives"
in_guest() { chroot "$root" /usr/bin/env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"; }

for image in hyperkube etcd; do
  in_guest podman --events-backend=none load --quiet --input "/tmp/archives/$image.tar"
done

in_guest sh -eu -s <<'GUEST'
# A containerd with the guest's own directories, for as long as the loading takes.
cat > /tmp/build.toml <<TOML
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.native", "io.containerd.internal.v1.opt"]
TOML
containerd --config /tmp/build.toml > /tmp/containerd.log 2>&1 &
pid=$!
trap 'kill "$pid" 2>/dev/null || true' EXIT
tries=0
until ctr version > /dev/null 2>&1; do
  tries=$((tries + 1))
  if [ "$tries" -gt 150 ]; then cat /tmp/containerd.log; echo "containerd did not start within 30 s"; exit 1; fi
  sleep 0.2
done
for image in pause coredns; do
  ctr --namespace k8s.io images import --local --snapshotter overlayfs "/tmp/archives/$image.tar"
done
# kubelet's image garbage collection leaves a pinned image alone.
for name in $(ctr --namespace k8s.io images list -q); do
  ctr --namespace k8s.io images label "$name" io.cri-containerd.image=managed io.cri-containerd.pinned=pinned > /dev/null
done
kill "$pid"
wait "$pid" || true
trap - EXIT
GUEST

say "sharing files between images and guest"
# kubectl is hyperkube, and etcdctl is etcd, by another name: hard links to the
# files in podman's layers cost the disk nothing.
layers=$root/var/lib/containers/storage/overlay
ln "$(ls "$layers"/*/diff/hyperkube)" "$root/usr/local/bin/kubectl"
ln "$(ls "$layers"/*/diff/usr/local/bin/etcd)" "$root/usr/local/bin/etcdctl"
ln -s etcdctl "$root/usr/local/bin/etcdutl"

# Compiled here once, and never compared with their source again.
in_guest python3 -m compileall -q --invalidation-mode unchecked-hash /usr/lib/ktcw

say "choosing what starts"
sed 's/#.*//' "$here/units" | while read -r verb unit; do
  [ -n "$verb" ] || continue
  if [ "$verb" = mask-generator ]; then
    mkdir -p "$root/etc/systemd/system-generators"
    ln -s /dev/null "$root/etc/systemd/system-generators/$unit"
    continue
  fi
  chroot "$root" systemctl --quiet "$verb" "$unit"
done
chroot "$root" systemctl --quiet set-default multi-user.target

say "cleaning up"
# Lazily, each tree as a whole: without root the kernel does not let the mounts below /dev and /sys go one by one.
umount --lazy "$root/tmp" "$root/run" "$root/dev" "$root/sys" "$root/proc"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/cache/debconf/*-old \
  "$root"/var/log/*.log "$root"/var/log/apt "$root"/var/lib/dpkg/*-old "$root"/var/lib/systemd/random-seed \
  "$root"/etc/ssh/ssh_host_* "$root"/etc/hostname "$root"/etc/update-motd.d/* "$root"/var/lib/dbus/machine-id \
  "$root"/run/* "$root"/tmp/* "$root"/etc/resolv.conf
: > "$root/etc/machine-id"
: > "$root/etc/resolv.conf"
mkdir -p "$root/var/log/journal"

say "taking the kernel out"
cp "$root"/boot/vmlinuz-* "$out/vmlinuz"
cp "$root"/boot/initrd.img-* "$out/initrd.img"
chmod 0644 "$out/vmlinuz" "$out/initrd.img"
rm -rf "${root:?}"/boot/* "$root/vmlinuz" "$root/initrd.img" "$root/vmlinuz.old" "$root/initrd.img.old"

say "making the file system"
# The file is new and sparse, so what was not written is zero: nothing is left for
# the guest's first hours to initialise.
truncate -s "$DISK_SIZE" "$work/base.raw"
mke2fs -q -F -t ext4 -L ktcw-root -m 1 -i 32768 -E assume_storage_prezeroed=1,root_owner=0:0 -d "$root" "$work/base.raw"

say "writing the disk"
qemu-img convert -O qcow2 -o cluster_size=64k "$work/base.raw" "$out/base.qcow2"
