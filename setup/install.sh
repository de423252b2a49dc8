#!/usr/bin/env bash
# Installs what is missing to build, run or test: setup/install.sh [build] [run] [test] [browser] [ci]   (default: build run)
# `ci` is what the tests insist on there and do without elsewhere: nobody's laptop gets an SSH server by typing `make test`.
# `browser` is for `make test` alone, which fails without one unless KTCW_NO_BROWSER says that nothing is to be checked with it,
# or apt has none.
# Called by `make setup`, `make test` and CI; looks first, so that on a machine that has everything it says nothing and ends at once.
# It knows Debian's package names; on other distributions it names the tools and the packages and stops with 69.
set -euo pipefail
# shellcheck source=setup/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

# group, how to see that it is there, Debian package. Presence is judged by the thing, not by the package database:
# a tool from elsewhere is as good, and the table reads the same on any distribution.
needs() {
  cat <<'TABLE'
build cmd:pkg-config                        pkg-config
build pc:libvirt                            libvirt-dev
build cmd:protoc                            protobuf-compiler
build include:google/protobuf/empty.proto   libprotobuf-dev
build cmd:cc                                gcc
build include:stdio.h                       libc6-dev
run   cmd:qemu-system-x86_64                qemu-system-x86
run   cmd:qemu-img                          qemu-utils
run   cmd:libvirtd,virtqemud                libvirt-daemon-system
run   driver:qemu                           libvirt-daemon-driver-qemu
run   driver:network                        libvirt-daemon-system
run   driver:storage                        libvirt-daemon-system
run   cmd:virtlogd                          libvirt-daemon-system
run   cmd:virsh                             libvirt-clients
run   cmd:dnsmasq                           dnsmasq-base
run   cmd:iptables                          iptables
run   cmd:nft                               nftables
run   cmd:ip                                iproute2
run   cmd:mmdebstrap                        mmdebstrap
run   cmd:gpg                               gpg
run   file:/usr/share/keyrings/debian-archive-keyring.gpg,/usr/share/keyrings/debian-archive-keyring.pgp debian-archive-keyring
run   file:/etc/ssl/certs/ca-certificates.crt ca-certificates
run   cmd:newuidmap                         uidmap
run   cmd:mke2fs                            e2fsprogs
run   cmd:zstd                              zstd
run   cmd:setpriv                           util-linux
run   cmd:curl                              curl
test  cmd:xmllint                           libxml2-utils
test  cmd:isoinfo                           genisoimage
test  python:yaml                           python3-yaml
test  cmd:shellcheck                        shellcheck
test  cmd:openssl                           openssl
test  cmd:ssh-keygen                        openssh-client
browser cmd:chromium,chromium-browser,google-chrome chromium
ci    cmd:sshd                              openssh-server
TABLE
}

there() {
  local what=${1#*:} name
  case $1 in
    cmd:* | file:*) # a comma: any of them will do
      for name in ${what//,/ }; do
        case $1 in
          cmd:*) if command -v "$name" >/dev/null; then return 0; fi ;;
          file:*) if [ -e "$name" ]; then return 0; fi ;;
        esac
      done
      return 1
      ;;
    pc:*) command -v pkg-config >/dev/null && pkg-config --exists "$what" ;;
    include:*) compgen -G "/usr/include/$what" >/dev/null || compgen -G "/usr/local/include/$what" >/dev/null ||
      compgen -G "/usr/include/*-linux-gnu*/$what" >/dev/null ;;
    driver:*) compgen -G "/usr/lib*/libvirt/connection-driver/libvirt_driver_$what.so" >/dev/null ||
      compgen -G "/usr/lib/*-linux-gnu*/libvirt/connection-driver/libvirt_driver_$what.so" >/dev/null ;;
    # Debian's modules are seen by Debian's python only, which need not be the first on the PATH.
    python:*) /usr/bin/python3 -c "import $what" 2>/dev/null || python3 -c "import $what" 2>/dev/null ;;
    *) die 2 "unknown kind of need: $1" ;;
  esac
}

# Rust and Go come from their own installers: no distribution we know of carries versions this new.
toolchains() {
  local want have bad=0
  want=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$root/Cargo.toml")
  have=$(cd "$root" && cargo --version 2>/dev/null | cut -d' ' -f2) || have=
  if [ -z "$have" ]; then
    say "cargo is missing: install Rust $want or newer with rustup (https://rustup.rs), then open a new shell"
    bad=1
  elif ! version_at_least "$have" "$want"; then
    say "cargo is $have, this needs $want or newer: rustup update stable"
    bad=1
  fi
  want=$(sed -n 's/^go \([0-9.]*\)$/\1/p' "$root"/images/*/go.mod | sort -V | tail -n 1)
  have=$(cd / && GOTOOLCHAIN=local go env GOVERSION 2>/dev/null | sed 's/^go//; s/ .*//') || have=
  if [ -z "$have" ]; then
    say "go is missing: install Go $want or newer (https://go.dev/doc/install); Kubernetes and etcd are built from source"
    bad=1
  elif ! version_at_least "$have" "$want" && ! go_switches "$want"; then
    say "go is $have, this needs $want or newer: https://go.dev/doc/install"
    bad=1
  fi
  [ "$bad" -eq 0 ] || die "$EX_HOST" "nothing was installed"
}

# From 1.21 on, go fetches the version that a go.mod asks for by itself, unless it is told not to.
go_switches() { (cd / && GOTOOLCHAIN="go$1+auto" go version >/dev/null 2>&1); }

# An older QEMU crashes 6.12 guest kernels under TCG within seconds (a double fault right after a cmpxchg16b). The same bound as
# the program's own (src/accel/qemu.rs), which a test compares with this line.
safe_qemu=8.2

# KTCW_KEEP_QEMU=1 leaves such a QEMU alone: fine where KVM works, refused by the program where it does not.
qemu_is_unsafe() {
  [ "${KTCW_KEEP_QEMU:-}" != 1 ] && [ -n "${1:-}" ] && ! version_at_least "$1" "$safe_qemu"
}

qemu_here() { qemu-system-x86_64 --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9][0-9.]*\).*/\1/p'; }

# apt and dpkg write hundreds of lines; they are kept, and shown only when something went wrong.
apt_get() {
  local log status=0
  log=$(mktemp) || return 1
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Options::=--force-confold "$@" >"$log" 2>&1 </dev/null || status=$?
  [ "$status" -eq 0 ] || tail -n 30 "$log" >&2
  rm -f "$log"
  return "$status"
}

apt_install() {
  say "installing, in about a minute: $*"
  apt_get install --no-install-recommends "$@" ||
    die "$EX_HOST" "apt-get could not install them. By hand: apt-get install --no-install-recommends $*"
}

qemu_candidate() { apt-cache policy "$@" qemu-system-x86 | sed -n 's/^ *Candidate: \([0-9]*:\)\{0,1\}\([0-9][0-9.]*\).*/\2/p'; }

# The newer QEMU of the backports suite, from the mirror that this machine is already configured with.
qemu_from_backports() {
  local codename=$1 suite=$1-backports uri entry=/etc/apt/sources.list.d/ktcw-backports.sources
  local keyring=/usr/share/keyrings/debian-archive-keyring.gpg added=no
  if ! indextargets | grep -q " $suite\$"; then
    uri=$(indextargets | sed -n "s/ $codename\$//p" | head -n 1)
    [ -n "$uri" ] || die "$EX_HOST" "no apt source for $codename is configured, so there is no mirror to take a newer QEMU from"
    say "adding $entry: $suite, for a QEMU of $safe_qemu or newer (older ones crash guests without KVM)"
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$uri" "$suite" "$keyring" |
      as_root tee "$entry" >/dev/null
    added=yes
    apt_get update || true
  fi
  if ! version_at_least "$(qemu_candidate -t "$suite")" "$safe_qemu"; then
    if [ "$added" = yes ]; then
      as_root rm -f "$entry"
      apt_get update || true
    fi
    say "the mirror has no QEMU of $safe_qemu or newer in $suite: staying with what there is. Without KVM 'ktcw-vm up' will refuse it and say the way out"
    return 1
  fi
  apt_install -t "$suite" qemu-system-x86 qemu-utils
  # libvirt remembers what the old QEMU could do.
  as_root sh -c 'rm -f /var/cache/libvirt/qemu/capabilities/*.xml'
  if [ -d /run/systemd/system ]; then as_root systemctl try-restart libvirtd.service virtqemud.service || true; fi
}

# One line per configured suite: mirror, code name.
indextargets() {
  # shellcheck disable=SC2016  # apt's own placeholders
  apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 'Component: main' | sort -u
}

# The guests are Debian's. Where apt knows none of its archives (Ubuntu) one must be named, said before minutes are spent.
archive() {
  local id
  id=$(sed -n 's/^ID=//p' /etc/os-release 2>/dev/null | tr -d '"')
  if [ "$id" = debian ] || [ -n "${MIRROR:-}" ] || ! command -v apt-get >/dev/null; then return; fi
  if [ -n "$(find "$cache/images" -maxdepth 2 -name image.json -print -quit 2>/dev/null)" ]; then return; fi
  # shellcheck disable=SC2016  # apt's own placeholders
  if apt-get indextargets --format '$(REPO_URI) $(ORIGIN)' 'Created-By: Packages' | grep -qE ' Debian$|/debian/? '; then return; fi
  die "$EX_HOST" "the guests are Debian 13, and apt is configured with no Debian archive here: make up MIRROR=http://ARCHIVE/debian"
}

[ $# -gt 0 ] || set -- build run
for group; do
  case $group in build | run | test | browser | ci) ;; *) die 2 "unknown group '$group': build, run, test, browser or ci" ;; esac
done
case " $* " in *" build "*) toolchains ;; esac
case " $* " in *" run "*) archive ;; esac

missing=() packages=()
while read -r group seen package; do
  case " $* " in *" $group "*) ;; *) continue ;; esac
  there "$seen" || {
    missing+=("${seen#*:} ($package)")
    case " ${packages[*]} " in *" $package "*) ;; *) packages+=("$package") ;; esac
  }
done < <(needs)
upgrade=no
case " $* " in *" run "*) if qemu_is_unsafe "$(qemu_here)"; then upgrade=yes; fi ;; esac
[ "${#missing[@]}" -gt 0 ] || [ "$upgrade" = yes ] || exit 0

# shellcheck source=/dev/null
. /etc/os-release
case " ${ID:-} ${ID_LIKE:-} " in *" debian "* | *" ubuntu "*) debian=yes ;; *) debian=no ;; esac
if [ "$debian" = no ] || ! command -v apt-get >/dev/null; then
  say "${PRETTY_NAME:-this distribution} is not Debian-like: install what is missing with its own package manager"
  say "(in brackets: the name of Debian's package)"
  [ "${#missing[@]}" -eq 0 ] || printf '  %s\n' "${missing[@]}" >&2
  [ "$upgrade" = no ] || say "and a QEMU of $safe_qemu or newer: older ones crash guests without KVM"
  case " ${packages[*]} " in *" chromium "*) say "to do without a browser: make test KTCW_NO_BROWSER=1" ;; esac
  exit "$EX_HOST"
fi

if [ "$EUID" -ne 0 ]; then
  command -v sudo >/dev/null || die "$EX_HOST" "missing: ${packages[*]}; installing them needs root and there is no sudo: run it as root"
  say "this needs root: sudo may ask for your password"
fi
apt_get update || say "apt-get update failed; going on with the package lists that are there"
if ! browser_to_be_had; then
  groups=() rest=()
  for group; do [ "$group" = browser ] || groups+=("$group"); done
  for package in "${packages[@]}"; do [ "$package" = chromium ] || rest+=("$package"); done
  set -- "${groups[@]}"
  packages=("${rest[@]}")
fi
if [ "$upgrade" = no ] && qemu_is_unsafe "$(qemu_candidate)"; then
  # Not here yet, or only half of it: the newer one at once instead of both in turn.
  case " ${packages[*]} " in *" qemu-"*) upgrade=yes ;; esac
fi
if [ "$upgrade" = yes ] && qemu_from_backports "${VERSION_CODENAME:?/etc/os-release names no code name}"; then
  rest=()
  for package in "${packages[@]}"; do
    case $package in qemu-system-x86 | qemu-utils) ;; *) rest+=("$package") ;; esac
  done
  packages=("${rest[@]}")
fi
if [ "${#packages[@]}" -gt 0 ]; then apt_install "${packages[@]}"; fi

# What apt called success is looked at once more: a package may have moved its tool elsewhere.
status=0
while read -r group seen package; do
  case " $* " in *" $group "*) ;; *) continue ;; esac
  there "$seen" || { say "${seen#*:} is still missing after installing $package" && status=$EX_HOST; }
done < <(needs)
exit "$status"
