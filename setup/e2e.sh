#!/usr/bin/env bash
# Runs the VM suite in a world of its own: a network namespace, a libvirtd in it, a state directory; all gone afterwards.
#
#   setup/e2e.sh smoke|e2e|full|bench|soak [libtest arguments…]
#
# Called by make (test, e2e, e2e-full, bench, soak) and so by CI. Root, or sudo. What it hands to `tests/e2e`:
#
#   KTCW_E2E            the suite's name: `smoke`, `e2e`, `full`, `bench` or `soak`
#   KTCW_E2E_MODE       `kvm` (the image's kernel boots under KVM) · `kvm-test-kernel` · `tcg`
#   KTCW_E2E_KERNEL     the unpacked test kernel, in mode kvm-test-kernel only
#   KTCW_E2E_ARTEFACTS  a directory that is kept when a test fails; what is kept in any case goes into bench beside it
#   XDG_STATE_HOME      a fresh directory, so that no cluster of the user's is seen or touched
#
# Read from outside: KTCW_E2E_MODE (no probing), KTCW_TEST_KERNEL (default ../shared/kernel/vmlinux.zst, when there),
# KTCW_E2E_DEADLINE in seconds. It builds, it probes, it cleans up; what is tested is decided in Rust.
set -euo pipefail
# shellcheck source=setup/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"

suite=${1:-}
[ $# -eq 0 ] || shift
profile=debug cargo_flags=(--locked)
case $suite in
  smoke) deadline=900 filter=(smoke::) ;;
  # `full::` is a part of `labs_full::` too.
  e2e) deadline=3600 filter=(--skip smoke:: --skip bench:: --skip soak:: --skip emulated:: --skip sizes:: --skip full::) ;;
  full) deadline=14400 filter=(--skip smoke:: --skip bench:: --skip soak::) ;;
  bench) deadline=7200 filter=(bench:: emulated::) profile=release cargo_flags+=(--release) ;;
  soak) deadline=$((${KTCW_SOAK_SECONDS:-3600} + 3600)) filter=(soak::) profile=release cargo_flags+=(--release) ;;
  *) die 2 "usage: setup/e2e.sh smoke|e2e|full|bench|soak [libtest arguments…]" ;;
esac
deadline=${KTCW_E2E_DEADLINE:-$deadline}
program=$target/$profile/ktcw-vm
# As tests/e2e/rig.rs has them, and why.
test_kernel_args="nokaslr dummy.numdummies=0 highres=off"
packed_kernel=${KTCW_TEST_KERNEL:-$root/../shared/kernel/vmlinux.zst}
[ -z "${KTCW_TEST_KERNEL:-}" ] || [ -e "$packed_kernel" ] || die 2 "KTCW_TEST_KERNEL: no such file: $packed_kernel"
case ${KTCW_E2E_MODE:-} in
  "" | kvm | tcg) ;;
  kvm-test-kernel) [ -e "$packed_kernel" ] || die 2 "KTCW_E2E_MODE=kvm-test-kernel needs a kernel: set KTCW_TEST_KERNEL" ;;
  *) die 2 "KTCW_E2E_MODE is '$KTCW_E2E_MODE': kvm, kvm-test-kernel or tcg" ;;
esac

# Built as whoever calls, with the network that the namespace will not have.
if [ "${KTCW_E2E_BUILT:-}" != 1 ]; then
  cargo build "${cargo_flags[@]}" --bin ktcw-vm
  cargo test "${cargo_flags[@]}" --test e2e --test libvirt_real --no-run
  "$root/setup/images.sh" "$program"
  if [ "$EUID" -ne 0 ]; then
    KTCW_E2E_BUILT=1 as_root "$root/setup/e2e.sh" "$suite" "$@"
    exit
  fi
fi

# One run at a time in one target directory.
work=$target/e2e artefacts=$target/e2e-artefacts
mkdir -p "$work"
exec 8>"$work/lock"
flock --nonblock 8 || die 75 "another run of the VM suite holds $work/lock"
namespace=ktcw-e2e-$$

private() { "$root/setup/libvirt-private.sh" "$namespace" "$work/lv" "$@" 8>&-; }

# What a failed run is understood from, and nothing secret: no keys, no seeds, no kubeconfig.
keep_evidence() {
  mkdir -p "$artefacts"
  (
    cd "$work" && find state lv/log doctor.log -type f \
      \( -name '*.jsonl' -o -name '*.log' -o -name 'plan.json' -o -name 'spec.json' -o -path '*/reports/*.json' \) \
      -not -path '*/pki/*' -not -path '*/ssh/*' -exec cp --parents -t "$artefacts" -- {} + 2>/dev/null
  ) || true
  { private exec virsh -q -c qemu:///system list --all && private exec ip -br address; } >"$artefacts/left.txt" 2>&1 || true
  if [ -e "$work/tests.log" ]; then
    cp "$work/tests.log" "$artefacts/"
    # Once more at the end, where it is looked for: the console of a long run may have been cut.
    say "what failed:"
    grep -a -A 12 'panicked at' "$work/tests.log" | cut -c 1-400 | head -80 >&2 || true
  fi
  say "journals, events, console logs and the output of the failed run are in $artefacts"
}

finish() {
  local status=$?
  trap - EXIT INT TERM
  if [ -n "$tests" ] && kill "$tests" 2>/dev/null; then wait "$tests" || true; fi
  [ "$status" -eq 0 ] || keep_evidence
  private stop || say "the private libvirt of $namespace did not stop"
  rm -rf -- "${work:?}/lv" "${work:?}/state" "${work:?}/door" "${work:?}/vmlinux" "${work:?}/tests.log"
  # Through sudo, the target directory is still the caller's: `make clean` must be able to empty it.
  if [ -n "${SUDO_UID:-}" ]; then chown -R "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$work" "$artefacts" "$target/bench" 2>/dev/null || true; fi
  exit "$status"
}

# A run that was killed outright could not clean up after itself. We hold the lock, so what is there is nobody's.
sweep() {
  if [ -e "$work/lv" ] && [ -s "$work/namespace" ]; then
    "$root/setup/libvirt-private.sh" "$(cat "$work/namespace")" "$work/lv" stop 8>&- || true
  fi
  rm -rf -- "${work:?}/lv" "${work:?}/state" "${work:?}/doctor.log" "${work:?}/tests.log" "${artefacts:?}"
}

unpack_kernel() {
  case $packed_kernel in
    *.zst) zstd -q -d -f "$packed_kernel" -o "$work/vmlinux" ;;
    *) ln -sf "$(realpath "$packed_kernel")" "$work/vmlinux" ;;
  esac
}

# "Can a cluster run here like this?", asked of the program, which boots the kernel to find out. 0 yes, 69 no.
suits_host() {
  local status=0
  private exec env XDG_STATE_HOME="$work/state" "$program" doctor "$@" >"$work/doctor.log" 2>&1 </dev/null || status=$?
  case $status in
    0) return 0 ;;
    69) return 1 ;;
    *) cat "$work/doctor.log" >&2 && die 1 "'ktcw-vm doctor $*' ended with $status, neither yes (0) nor no (69)" ;;
  esac
}

choose_mode() {
  if [ -n "${KTCW_E2E_MODE:-}" ]; then
    mode=$KTCW_E2E_MODE reason="KTCW_E2E_MODE says so"
    [ "$mode" != kvm-test-kernel ] || unpack_kernel
    return
  fi
  mode=tcg reason="no usable /dev/kvm"
  if [ ! -r /dev/kvm ] || [ ! -w /dev/kvm ]; then return; fi
  if suits_host --accel kvm; then
    mode=kvm reason="the image's kernel was seen to boot under KVM"
  elif [ -e "$packed_kernel" ] && unpack_kernel &&
    suits_host --accel kvm --kernel "$work/vmlinux" --kernel-args "$test_kernel_args"; then
    mode=kvm-test-kernel reason="only the test kernel was seen to boot under KVM"
  else
    reason="no kernel was seen to boot under KVM"
  fi
}

sweep
mkdir -p "$work/state"
tests=
echo "$namespace" >"$work/namespace"
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
private start

choose_mode
say "$suite: mode $mode ($reason)"
environment=(KTCW_E2E="$suite" KTCW_E2E_MODE="$mode" KTCW_E2E_ARTEFACTS="$artefacts" XDG_STATE_HOME="$work/state")
if [ "$mode" = kvm-test-kernel ]; then environment+=(KTCW_E2E_KERNEL="$work/vmlinux"); fi

mkdir -p "$artefacts"
# What `make up` and `make down` do for whoever has just cloned this; a minute.
case $suite in e2e | full)
  up_flags="--accel ${mode%-test-kernel} --no-golden"
  if [ "$mode" = kvm-test-kernel ]; then
    up_flags+=" --kernel $work/vmlinux --kernel-args '$test_kernel_args'"
  fi
  KTCW_PROGRAM=$program timeout --kill-after=60 1200 "$root/setup/front-door.sh" "$work/door" "$up_flags" </dev/null 8>&-
  ;;
esac
# The libvirt edge against a libvirtd of its own that it may kill; half a minute.
case $suite in e2e | full)
  stock=$(find "$cache/images" -maxdepth 2 -name vmlinuz -print -quit)
  tested=("KTCW_TEST_KERNEL_TCG=$stock")
  if [ "$mode" = kvm-test-kernel ]; then tested+=("KTCW_TEST_KERNEL=$work/vmlinux"); fi
  env "${tested[@]}" timeout --kill-after=30 600 \
    cargo test "${cargo_flags[@]}" --offline --test libvirt_real -- --ignored --nocapture </dev/null 8>&-
  ;;
esac

# One test at a time: the VMs have the machine to themselves. In the background, so that Ctrl-C is heard at once; timeout
# puts all of it in one process group and ends that, also when this script is killed outright (pdeathsig).
"$root/setup/libvirt-private.sh" "$namespace" "$work/lv" exec env "${environment[@]}" \
  setpriv --pdeathsig TERM timeout --kill-after=30 "$deadline" \
  cargo test "${cargo_flags[@]}" --offline --test e2e -- --nocapture --test-threads=1 "${filter[@]}" "$@" \
  </dev/null > >(tee "$work/tests.log" 8>&-) 2>&1 8>&- &
tests=$!
status=0
wait "$tests" || status=$?
tests=
[ "$status" -ne 124 ] || say "$suite: not finished after $deadline s (KTCW_E2E_DEADLINE)"
rmdir --ignore-fail-on-non-empty -- "$artefacts"
[ "$status" -eq 0 ] || exit "$status"
