# What every script in setup/ agrees on: where things are, how to speak, how to become root.
# Sourced, never run. It installs and starts nothing.
# shellcheck shell=bash

# A plain user's PATH on Debian lacks the directories of libvirtd, ip, dnsmasq and mke2fs.
PATH=$PATH:/usr/sbin:/sbin
export PATH
HOME=${HOME:-$(getent passwd "$EUID" | cut -d: -f6)}
export HOME

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
target=${CARGO_TARGET_DIR:-$root/target}
# The program's own cache directory (src/image/cache.rs); tools built once live in it too. `make clean` leaves it alone.
# shellcheck disable=SC2034  # used by the scripts that source this
cache=${KTCW_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/ktcw-vm}
case $target in /*) ;; *) target=$root/$target ;; esac

# The program's own exit code for "this host cannot" (sysexits' EX_UNAVAILABLE).
readonly EX_HOST=69

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
  local code=$1
  shift
  say "$@"
  exit "$code"
}

# version_at_least HAVE WANT
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# Whether there is a browser, or apt has one: in Ubuntu it is a snap, which does not see what tests write. CI has one.
browser_to_be_had() {
  if [ -n "${CI:-}" ] || ! command -v apt-cache >/dev/null || command -v chromium chromium-browser google-chrome >/dev/null; then return 0; fi
  apt-cache policy chromium 2>/dev/null | grep -q '^ *Candidate: [0-9]'
}

# Runs a command as root. The environment that names our directories and files, and the way out to the network, goes along, because
# sudo drops it.
as_root() {
  if [ "$EUID" -eq 0 ]; then
    "$@"
    return
  fi
  command -v sudo >/dev/null || die "$EX_HOST" "'$*' needs root and there is no sudo: run make as root"
  local name
  local -a keep=("PATH=$PATH" "HOME=$HOME")
  for name in "${!XDG_@}" "${!KTCW_@}" "${!GO@}" "${!CARGO_@}" KUBECONFIG CI NO_COLOR RUST_LOG TERM DEBIAN_FRONTEND \
    http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    [ -z "${!name+set}" ] || keep+=("$name=${!name}")
  done
  sudo -- env "${keep[@]}" "$@"
}
