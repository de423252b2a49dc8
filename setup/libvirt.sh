#!/usr/bin/env bash
# Which libvirt this machine's clusters live in, and how to run something where it can be reached.
#
#   setup/libvirt.sh ensure        a libvirt answers afterwards: the system's own, else one in a namespace of its own
#   setup/libvirt.sh exec CMD…     CMD where that libvirt and its guests can be reached
#   setup/libvirt.sh stop          ends and removes the one that `ensure` started, unless machines are left in it
#   setup/libvirt.sh where         says which one it is
#
# Called by make and bin/ktcw-vm. It knows nothing of clusters. The system's libvirt is wanted wherever it works; the
# private one is for machines without systemd (containers), where nobody else would start a libvirtd.
set -euo pipefail
# shellcheck source=setup/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

namespace=${KTCW_NETNS:-ktcw}
# Not below the user's home: it belongs to the machine, and root owns it.
state=${KTCW_LIBVIRT_DIR:-/var/lib/ktcw-vm/libvirt}

private() { as_root "$root/setup/libvirt-private.sh" "$namespace" "$state" "$@"; }
private_is_there() { [ -e "/run/netns/$namespace" ]; }

system_answers() { timeout 10 virsh -q -c qemu:///system version >/dev/null 2>&1; }

# A libvirtd that answers may yet keep its guests in another network namespace, where we could not reach them.
system_is_elsewhere() {
  local file pid
  for file in /run/libvirtd.pid /run/libvirt/libvirtd.pid /run/virtnetworkd.pid /run/libvirt/virtnetworkd.pid; do
    pid=$(cat "$file" 2>/dev/null) || continue
    # Unreadable (we are not root, or it is gone): no reason for doubt.
    if [ -e "/proc/$pid/ns/net" ] && [ "$(readlink "/proc/$pid/ns/net" || readlink /proc/self/ns/net)" != "$(readlink /proc/self/ns/net)" ]; then
      return 0
    fi
  done
  return 1
}

# Group libvirt decides who may talk to it. A group given today counts in this login only through sg.
member_in_name_only() {
  [ "$EUID" -ne 0 ] && [ -S /run/libvirt/libvirt-sock ] && [ ! -w /run/libvirt/libvirt-sock ] &&
    id -nG "$(id -un)" | tr ' ' '\n' | grep -qx libvirt
}

# One word a shell reads back as it was: sg takes a line, not arguments.
quoted() {
  local word
  for word; do printf "'%s' " "${word//\'/\'\\\'\'}"; done
}

start_system() {
  local unit
  for unit in libvirtd.socket virtqemud.socket virtnetworkd.socket virtstoraged.socket; do
    systemctl cat "$unit" >/dev/null 2>&1 || continue
    as_root systemctl start "$unit"
    case $unit in libvirtd.*) break ;; esac # the one daemon holds all drivers
  done
}

ensure() {
  if private_is_there; then
    private start
    return
  fi
  command -v virsh >/dev/null || die "$EX_HOST" "libvirt is not installed: setup/install.sh"
  if [ -d /run/systemd/system ]; then
    system_answers && return
    start_system
    system_answers && return
    if [ "$EUID" -ne 0 ] && as_root timeout 10 virsh -q -c qemu:///system version >/dev/null; then
      if ! id -nG "$(id -un)" | tr ' ' '\n' | grep -qx libvirt; then
        say "making $(id -un) a member of group libvirt, which may use qemu:///system"
        as_root usermod --append --groups libvirt "$(id -un)"
      fi
      if system_answers || sg libvirt -c 'timeout 10 virsh -q -c qemu:///system version >/dev/null'; then return; fi
    fi
    die "$EX_HOST" "qemu:///system does not answer: 'virsh -c qemu:///system version' and 'journalctl -u libvirtd' say why"
  fi
  if system_answers && ! system_is_elsewhere; then return; fi
  say "no systemd here: starting a libvirt in network namespace '$namespace' ($state)"
  private start
}

run_there() {
  [ $# -gt 0 ] || die 2 "exec: which command?"
  if private_is_there; then
    if [ "$EUID" -eq 0 ]; then exec "$root/setup/libvirt-private.sh" "$namespace" "$state" exec "$@"; fi
    # sudo hands no file descriptors on.
    unset KTCW_CALLER_NETNS
    private exec "$@"
  elif member_in_name_only; then
    exec sg libvirt -c "exec $(quoted "$@")"
  else
    exec "$@"
  fi
}

# What clusters would be called whose machines have such names; a machine of another kind is nobody's.
clusters_of() {
  tr ' ' '\n' <<<"$1" | sed -nE 's/^(.+)-(controller|worker)-[0-9]+$/\1/p' | sort -u
}

stop() {
  private_is_there || return 0
  local left
  private start
  left=$(private exec virsh -q -c qemu:///system list --all --name | paste -sd ' ')
  if [ -n "${left// /}" ]; then
    say "libvirt in namespace '$namespace' keeps running, for: $left"
    local cluster
    for cluster in $(clusters_of "$left"); do
      say "if $cluster is a cluster of yours: bin/ktcw-vm down -c $cluster removes it (bin/ktcw-vm list shows them); then make down again"
    done
    return 0
  fi
  private stop
  as_root rm -rf -- "$state"
  [ -n "${KTCW_LIBVIRT_DIR:-}" ] || as_root rmdir --ignore-fail-on-non-empty -- "$(dirname "$state")"
  say "libvirt in namespace '$namespace' is gone, with all that was in it"
}

where() {
  if private_is_there; then
    echo "qemu:///system in network namespace $namespace ($state)"
  elif system_answers && ! system_is_elsewhere; then
    echo "qemu:///system of this machine"
  else
    die "$EX_HOST" "no libvirt answers: make setup"
  fi
}

verb=${1:-}
[ $# -eq 0 ] || shift
case $verb in
  ensure) ensure ;;
  exec) run_there "$@" ;;
  stop) stop ;;
  where) where ;;
  *) die 2 "usage: setup/libvirt.sh ensure | exec CMD… | stop | where" ;;
esac
