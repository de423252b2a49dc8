#!/usr/bin/env bash
# Known vulnerabilities in what we build: RustSec for the program, Go's database for what the machines run. Called by `make audit`.
# Both databases live on the internet. Exit 0: both were read and nothing is known; 1: something is known; 69: not checked.
# It never calls clean what it could not ask about.
set -euo pipefail
# shellcheck source=setup/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"

found=no unchecked=no
log=$(mktemp)
trap 'rm -f "$log"' EXIT

report() { # name, verdict, the line that says most
  printf '%-22s %s%s\n' "$1" "$2" "${3:+ ($3)}"
}

deny=$(setup/tool.sh cargo-deny)
if ! timeout 120 "$deny" --locked fetch db >"$log" 2>&1 </dev/null; then
  unchecked=yes
  report "Rust crates" "not checked" "the RustSec database cannot be reached"
elif "$deny" --locked --offline check --hide-inclusion-graph advisories; then
  report "Rust crates" "nothing known"
else
  found=yes
  report "Rust crates" "VULNERABLE" "see above"
fi

vulncheck=$(setup/tool.sh govulncheck)
# Imported packages, not call graphs: Kubernetes' takes more memory than a laptop has. images/runtime has no package of
# its own, only tools that it pins.
for module in images/*/go.mod; do
  dir=${module%/go.mod}
  pattern=./...
  compgen -G "$dir/*.go" >/dev/null || pattern=tool
  status=0
  (cd "$dir" && timeout 600 "$vulncheck" -scan package "$pattern") >"$log" 2>&1 </dev/null || status=$?
  case $status in
    0) report "Go, $dir" "nothing known" ;;
    3)
      found=yes
      cat "$log"
      report "Go, $dir" "VULNERABLE" "see above"
      ;;
    *)
      unchecked=yes
      # What is true of one is true of all when it is the database.
      if grep -q '^govulncheck: fetching vulnerabilities' "$log"; then
        report "Go, all modules" "not checked" "the Go vulnerability database cannot be reached"
        break
      fi
      report "Go, $dir" "not checked" "$(grep -v '^$' "$log" | head -n 1 | cut -c1-120)"
      ;;
  esac
done

[ "$found" = no ] || exit 1
[ "$unchecked" = no ] || exit "$EX_HOST"
