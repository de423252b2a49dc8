#!/bin/sh
# Unpacks a Debian from a list of packages into a tar. Runs as root of its own
# mount and PID namespace (and user namespace, when the caller is not root).
#
#   debian.sh VARIANT PACKAGES MIRROR SUITE KEYRING OUT
#
# Writes OUT/rootfs.tar and OUT/packages.txt (what was resolved: name, version).
set -eu
variant=$1 packages=$2 mirror=$3 suite=$4 keyring=$5 out=$6
here=$(dirname "$0")

include=$(sed 's/#.*//' "$packages" | tr -s ' \n' ',,' | sed 's/^,//; s/,$//')
# The suite with its updates; security has an archive of its own, which not every
# mirror carries: an image lives for days behind NAT, in a network of its own.
cat > "$out/sources.list" <<LIST
deb [signed-by=$keyring] $mirror $suite main
deb [signed-by=$keyring] $mirror $suite-updates main
LIST

# A kernel wants to know what its initrd shall hold before it is installed.
set --
case ,$include, in *,linux-image-*)
  set -- --essential-hook="sh '$here/initramfs.sh' \"\$1\"" ;;
esac

mmdebstrap --mode=root --variant="$variant" --format=tar --skip=check/qemu,output/dev \
  --include="$include" \
  --aptopt='Apt::Install-Recommends "false"' \
  --aptopt='Acquire::Languages "none"' \
  --aptopt='Acquire::Retries "3"' \
  --dpkgopt=force-unsafe-io \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/info/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/i18n/*' \
  --dpkgopt='path-exclude=/usr/share/lintian/*' \
  --dpkgopt='path-exclude=/usr/share/bug/*' \
  "$@" \
  --customize-hook="chroot \"\$1\" dpkg-query -W -f '\${Package} \${Version}\\n' > '$out/packages.txt'" \
  "$suite" "$out/rootfs.tar" "$out/sources.list" </dev/null
rm "$out/sources.list"
