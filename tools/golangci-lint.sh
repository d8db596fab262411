#!/usr/bin/env bash
# Prints the path of the pinned golangci-lint, building it first if need be.
#
# The version stands in tools/golangci/go.mod. The binary is built from source
# through the Go module proxy, once per version, Go release and platform, into
# the user's cache directory, where every checkout finds it again.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
package=github.com/golangci/golangci-lint/v2

cd "$here/golangci"
export GOWORK=off GOFLAGS=-mod=readonly
version=$(go list -m -f '{{.Version}}' "$package")
key="golangci-lint-$version-$(go env GOVERSION)-$(go env GOOS)-$(go env GOARCH)"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/postern/tools"
binary="$cache/$key"

if [ ! -x "$binary" ]; then
	mkdir -p "$cache"
	exec 9>"$cache/$key.lock"
	flock 9 # two checkouts may want it at once
	if [ ! -x "$binary" ]; then
		echo "building golangci-lint $version from source: once per machine, a few minutes" >&2
		begin=$SECONDS
		nice go build -trimpath -ldflags='-s -w' -o "$binary.new" "$package/cmd/golangci-lint" &
		build=$!
		while sleep 1; do
			kill -0 "$build" 2>/dev/null || break
			if [ $(((SECONDS - begin) % 30)) = 0 ]; then
				echo "  still building golangci-lint, $((SECONDS - begin)) s" >&2
			fi
		done
		wait "$build"
		mv "$binary.new" "$binary"
		echo "built golangci-lint $version in $((SECONDS - begin)) s" >&2
	fi
fi
echo "$binary"
