#!/bin/bash
# A libvirt of one's own: libvirtd, virtlogd, bridges, dnsmasq and guests inside one network namespace, with sockets,
# configuration, images and logs under one directory. The machine's own libvirt, if there is one, is neither read nor
# disturbed; guests have no way out of the namespace. Meant for tests, and for machines without systemd.
#
#   libvirt-private.sh NAMESPACE STATE_DIR start           idempotent; returns once libvirt answers
#   libvirt-private.sh NAMESPACE STATE_DIR exec CMD…       CMD with that libvirt as qemu:///system and that network
#   libvirt-private.sh NAMESPACE STATE_DIR stop            idempotent; powers off what runs, ends the daemons
#   libvirt-private.sh NAMESPACE STATE_DIR status          exit 0 when it answers
#
# From outside, `exec` is not needed for libvirt alone: qemu+unix:///system?socket=STATE_DIR/run/libvirt-sock is the same one.
#
# How: libvirt's directories are compiled in (/etc/libvirt, /var/lib/libvirt, /run/libvirt, …). A private mount
# namespace, held open by virtlogd, has directories of STATE_DIR bound over them. Nothing is mounted outside of it but network
# namespaces below /run/netns, so a crash leaves no mount behind, and removing STATE_DIR after `stop` removes everything.
set -euo pipefail

usage() { sed -n '6,9s/^# *//p' "$0" >&2; exit 2; }
fail() { echo "libvirt-private: $*" >&2; exit 1; }

[ $# -ge 3 ] || usage
namespace=$1 state=$2 verb=$3
shift 3
[[ $namespace =~ ^[a-z][a-z0-9-]{0,30}$ ]] || fail "'$namespace' is not a namespace name ([a-z][a-z0-9-]*)"
[ "$(id -u)" = 0 ] || fail "must run as root (network and mount namespaces)"
PATH=$PATH:/usr/sbin:/sbin

# $1: pid file, $2: program. The pid, if that program runs under it *in a mount namespace of this state directory*:
# a pid file that outlived a crash may name somebody else's process by now.
alive() {
    local pid
    pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] || return 1
    grep -qs " /run/libvirt " "/proc/$pid/mountinfo" && [ -e "/proc/$pid/root$marker" ] || return 1
    echo "$pid"
}

inside() { nsenter --target "$(alive "$pids/virtlogd.pid" virtlogd)" --mount --net -- "$@"; }

answers() { alive "$pids/libvirtd.pid" libvirtd >/dev/null && inside timeout 5 virsh -q -c qemu:///system version >/dev/null 2>&1; }

configure() {
    mkdir -p "$state"/{etc/libvirt/qemu/networks,lib/{images,qemu,dnsmasq,boot},log/qemu,cache,run,pids}
    chmod 0711 "$state" "$state/lib" "$state/lib/images"
    # Guests run as root: STATE_DIR may be below a directory that no other user can enter.
    # No cgroups: two libvirts would give two guests of the same name and number the same group.
    printf '%s\n' 'user = "root"' 'group = "root"' 'security_driver = "none"' 'cgroup_controllers = []' \
        'namespaces = []' >"$state/etc/libvirt/qemu.conf"
    printf '%s\n' 'unix_sock_rw_perms = "0700"' 'auth_unix_rw = "none"' 'auth_unix_ro = "none"' \
        "host_uuid = \"$(cat "$state/etc/host-uuid" 2>/dev/null || tee "$state/etc/host-uuid" </proc/sys/kernel/random/uuid)\"" \
        >"$state/etc/libvirt/libvirtd.conf"
    : >"$state/etc/libvirt/virtlogd.conf"
}

# Ends a daemon of ours: SIGTERM, then SIGKILL after 5 s.
end() {
    local pid
    pid=$(alive "$1" "$2") || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
}

start() {
    for program in libvirtd virtlogd virsh unshare nsenter ip dnsmasq qemu-system-x86_64; do
        command -v "$program" >/dev/null || fail "$program is not installed"
    done
    if [ ! -e "/run/netns/$namespace" ]; then
        ip netns add "$namespace"
        touch "$state/made-namespace"
    fi
    ip -n "$namespace" link set lo up
    if ! alive "$pids/virtlogd.pid" virtlogd >/dev/null; then
        end "$pids/libvirtd.pid" libvirtd
        rm -f "$pids"/*.pid
        # Sockets and pid files of a former run mean nothing now.
        rm -rf "${state:?}/run"
        mkdir "$state/run"
        # What is mounted here is seen by what is started here, and nobody else; but /run/netns is everybody's, or a namespace
        # that is made in here (a fork's) could not be entered from out there.
        # shellcheck disable=SC2016
        nsenter --net="/run/netns/$namespace" unshare --mount --propagation unchanged -- bash -euc '
            state=$1
            while read -r _ _ _ _ at _; do
                [ "$at" = /run/netns ] || mount --make-private "$(printf %b "$at")" || true
            done <<<"$(</proc/self/mountinfo)"
            if grep " shared:" /proc/self/mountinfo | grep -v " /run/netns "; then echo "these mounts stay shared" >&2; exit 1; fi
            mount -t sysfs sysfs /sys # own interfaces in /sys/class/net, as `ip netns exec` does
            for pair in run:/run/libvirt etc/libvirt:/etc/libvirt lib:/var/lib/libvirt log:/var/log/libvirt cache:/var/cache/libvirt; do
                mkdir -p "${pair#*:}"
                mount --bind "$state/${pair%%:*}" "${pair#*:}"
            done
            touch "$2"
            exec virtlogd --daemon --pid-file "$state/pids/virtlogd.pid"
        ' bash "$state" "$marker" 9>&-
        for _ in $(seq 50); do alive "$pids/virtlogd.pid" virtlogd >/dev/null && break; sleep 0.1; done
        alive "$pids/virtlogd.pid" virtlogd >/dev/null || fail "virtlogd did not start; see $state/log"
    fi
    if ! alive "$pids/libvirtd.pid" libvirtd >/dev/null; then
        rm -f "$pids/libvirtd.pid"
        inside libvirtd --daemon --pid-file "$pids/libvirtd.pid" 9>&-
    fi
    for _ in $(seq 100); do answers && return 0; sleep 0.1; done
    fail "libvirtd did not answer within 10 s; see $state/log"
}

stop() {
    if alive "$pids/virtlogd.pid" virtlogd >/dev/null; then
        answers || start || true # guests and networks can only be ended through libvirtd
        if answers; then
            local thing
            for thing in $(inside virsh -q list --name); do inside virsh -q destroy "$thing" || true; done
            for thing in $(inside virsh -q net-list --name); do inside virsh -q net-destroy "$thing" || true; done
        fi
        end "$pids/libvirtd.pid" libvirtd
        end "$pids/virtlogd.pid" virtlogd # the mount namespace goes with its last process
    fi
    if [ -e "$state/made-namespace" ]; then
        ip netns del "$namespace" 2>/dev/null || true
        rm -f "$state/made-namespace"
    fi
}

case $verb in start | stop | exec | status) ;; *) usage ;; esac
mkdir -p "$state"
state=$(realpath "$state") pids=$state/pids marker=/run/libvirt/.private-$namespace
if [ "$verb" = start ] || [ "$verb" = stop ]; then
    exec 9>"$state/lock"
    flock --wait 60 9 || fail "another start or stop holds $state/lock"
fi
case $verb in
start)
    configure
    start
    ;;
stop) stop ;;
status) answers || fail "no libvirt answers in $namespace ($state)" ;;
exec)
    [ $# -gt 0 ] || usage
    pid=$(alive "$pids/virtlogd.pid" virtlogd) || fail "not running; first: $0 $namespace $state start"
    # The same directory as it is seen in there: one that was opened out here is on another mount, where nothing can be renamed to.
    exec nsenter --target "$pid" --mount --net -- env -C "$PWD" "$@"
    ;;
esac
