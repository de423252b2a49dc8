#!/usr/bin/env bash
# The checks of the Go mains in images/: setup/go.sh vet|fmt. Called by `make test` and `make lint`.
# Vetting compiles what they import: minutes, unless `image build` has done so; hence the very same settings as there.
set -euo pipefail
# shellcheck source=setup/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

case ${1:-} in
  vet)
    export CGO_ENABLED=0 GOOS=linux GOARCH=amd64 GOAMD64=v1 GOWORK=off GOFLAGS=
    for module in "$root"/images/*/go.mod; do
      cd "$(dirname "$module")"
      go mod verify >/dev/null || die 1 "$module: a module in the cache differs from what was downloaded"
      # images/runtime has versions to pin and no code of ours.
      compgen -G '*.go' >/dev/null || continue
      go vet -trimpath -mod=readonly ./... || die 1 "go vet: ${module%/go.mod}"
      say "go vet ${PWD#"$root"/}: ok"
    done
    ;;
  fmt)
    unformatted=$(gofmt -l "$root/images")
    [ -z "$unformatted" ] || die 1 "gofmt -w is wanted on: $unformatted"
    ;;
  *) die 2 "usage: setup/go.sh vet|fmt" ;;
esac
