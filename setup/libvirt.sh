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
# A test names others.
socket=${KTCW_LIBVIRT_SOCKET:-/run/libvirt/libvirt-sock} kvm=${KTCW_KVM:-/dev/kvm}

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

is_member() { id -nG "$(id -un)" | tr ' ' '\n' | grep -qxF -- "$1"; }

# The group that may open /dev/kvm where this user may not: nothing where there is no KVM, or nobody but root may.
kvm_group() {
  local group mode
  if [ "$EUID" -eq 0 ] || [ ! -e "$kvm" ] || { [ -r "$kvm" ] && [ -w "$kvm" ]; }; then return 0; fi
  read -r group mode < <(stat -c '%G %A' "$kvm")
  case $group:${mode:4:2} in root:* | UNKNOWN:*) ;; *:rw) echo "$group" ;; esac
}

# Groups decide who may talk to libvirt, and who may open /dev/kvm. One given today counts in this login only through sg. libvirt's
# is the first here and the innermost sg: one that exchanges the group instead of adding it must not lose that.
groups_in_name_only() {
  [ "$EUID" -ne 0 ] || return 0
  if [ -S "$socket" ] && [ ! -w "$socket" ] && is_member libvirt; then echo libvirt; fi
  local group
  group=$(kvm_group)
  if [ -n "$group" ] && is_member "$group" && command -v sg >/dev/null; then echo "$group"; fi
}

# One word a shell reads back as it was: sg takes a line, not arguments.
quoted() {
  local word
  for word; do printf "'%s' " "${word//\'/\'\\\'\'}"; done
}

# as_member GROUPS CMD…: CMD with those groups too, one sg around the other.
as_member() {
  local group line
  line="exec $(quoted "${@:2}")"
  for group in $1; do line="exec sg $(quoted "$group" -c "$line")"; done
  exec sh -c "$line"
}

# libvirt's machines run as a user of their own, which may; but that KVM works is shown by a guest that this one boots.
join_kvm() {
  local group
  group=$(kvm_group)
  if [ -z "$group" ] || is_member "$group"; then return; fi
  say "making $(id -un) a member of group $group, which may use $kvm"
  (as_root usermod --append --groups "$group" "$(id -un)") ||
    say "that failed: guests will be emulated, 10-15 times slower, until root types: usermod --append --groups $group $(id -un)"
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
    ensure_system
    join_kvm
  elif system_answers && ! system_is_elsewhere; then
    join_kvm
  else
    say "no systemd here: starting a libvirt in network namespace '$namespace' ($state)"
    private start
  fi
}

ensure_system() {
  system_answers && return
  start_system
  system_answers && return
  if [ "$EUID" -ne 0 ] && as_root timeout 10 virsh -q -c qemu:///system version >/dev/null; then
    if ! is_member libvirt; then
      say "making $(id -un) a member of group libvirt, which may use qemu:///system"
      as_root usermod --append --groups libvirt "$(id -un)"
    fi
    if system_answers || sg libvirt -c 'timeout 10 virsh -q -c qemu:///system version >/dev/null'; then return; fi
  fi
  die "$EX_HOST" "qemu:///system does not answer: 'virsh -c qemu:///system version' and 'journalctl -u libvirtd' say why"
}

run_there() {
  [ $# -gt 0 ] || die 2 "exec: which command?"
  local groups
  if private_is_there; then
    if [ "$EUID" -eq 0 ]; then exec "$root/setup/libvirt-private.sh" "$namespace" "$state" exec "$@"; fi
    # sudo hands no file descriptors on, but this shell waits for it, in the network where it was typed.
    [ -z "${KTCW_CALLER_NETNS:-}" ] || export KTCW_CALLER_NETNS=/proc/$$/ns/net
    private exec "$@"
    return
  fi
  groups=$(groups_in_name_only)
  if [ -n "$groups" ]; then as_member "$groups" "$@"; fi
  exec "$@"
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
