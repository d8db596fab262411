#!/usr/bin/env bash
# Builds the Debian packages of those programs that are in a folder: postern, postern-agent.
#
#   tools/package.sh VERSION GOARCH PROGRAMS DIRECTORY
#
# It needs no Debian. SOURCE_DATE_EPOCH dates the files; with it, the same programs give the same bytes.
set -euo pipefail
usage='usage: tools/package.sh VERSION GOARCH PROGRAMS DIRECTORY'
version=${1:?$usage} arch=${2:?$usage} programs=${3:?$usage} out=${4:?$usage}
mkdir -p "$out"
programs=$(cd "$programs" && pwd) out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
GOFLAGS=-mod=readonly GOWORK=off go -C tools/packages build -trimpath -buildvcs=false -o "$work/nfpm" github.com/goreleaser/nfpm/v2/cmd/nfpm
for name in postern postern-agent; do
	[ -f "$programs/$name" ] || continue
	VERSION=${version#v} ARCH=$arch PROGRAMS=$programs \
		"$work/nfpm" package --packager deb --config "packaging/deb/$name.yaml" --target "$out/${name}_${version#v}_$arch.deb" >&2
	echo "$out/${name}_${version#v}_$arch.deb"
done
