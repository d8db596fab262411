#!/usr/bin/env bash
# Builds a release: for each platform an archive with both programs and a bill of
# materials (CycloneDX) for each, and SHA256SUMS for all.
#
#   tools/release.sh VERSION [DIRECTORY [GOOS/GOARCH...]]
#
# The same sources, version and Go release give the same bytes, wherever and whenever
# it runs. SOURCE_DATE_EPOCH dates the files in the archives; it is that of the commit
# unless it is set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=${1:?usage: tools/release.sh VERSION [DIRECTORY [GOOS/GOARCH...]]}
out=${2:-dist}
shift $(($# < 2 ? $# : 2))
platforms=("$@")
[ ${#platforms[@]} -gt 0 ] || platforms=(linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64)
commands=(${RELEASE_COMMANDS:-postern postern-agent})
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
case $version in
v[0-9]*) ;;
*) echo "tools/release.sh: version $version: want v1.2.3" >&2 && exit 2 ;;
esac

mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What the environment says about Go must not change what is built.
unset GOAMD64 GOARM64 GOEXPERIMENT GODEBUG
export GOFLAGS=-mod=readonly GOWORK=off CGO_ENABLED=0

go build -trimpath -buildvcs=false -o "$work/sbom" ./tools/sbom
for platform in "${platforms[@]}"; do
	os=${platform%/*} arch=${platform#*/}
	name=postern_${version}_${os}_${arch}
	mkdir -p "$work/$name"
	suffix=
	[ "$os" != windows ] || suffix=.exe
	for command in "${commands[@]}"; do
		GOOS=$os GOARCH=$arch go build -trimpath -buildvcs=false \
			-ldflags="-s -w -buildid= -X postern.dev/postern/internal/cli/command.stamped=$version" \
			-o "$work/$name/$command$suffix" "./cmd/$command"
		"$work/sbom" "$work/$name/$command$suffix" >"$work/$name/$command.cdx.json"
		cp "$work/$name/$command.cdx.json" "$out/${command}_${version}_${os}_${arch}.cdx.json"
	done
	cp LICENSE README.md "$work/$name/"
	chmod -R u=rwX,go=rX "$work/$name"
	tar --create --directory="$work" --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner \
		--format=ustar "$name" | gzip --no-name -9 >"$out/$name.tar.gz"
	echo "$out/$name.tar.gz"
done
(cd "$out" && LC_ALL=C sha256sum -- *.tar.gz *.cdx.json >SHA256SUMS)
echo "$out/SHA256SUMS"
