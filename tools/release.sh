#!/usr/bin/env bash
# Builds a release: for each platform an archive with the programs and a bill of
# materials (CycloneDX) for each, Debian packages and container images of the programs
# for Linux, and SHA256SUMS of the archives and packages.
#
#   tools/release.sh [--images] VERSION [DIRECTORY [GOOS/GOARCH...]]
#
# Images are OCI layouts, DIRECTORY/images/PROGRAM, and beside them an archive for each
# platform that `ctr images import` takes; images/DIGESTS lists what they are. With
# --images nothing else is made. To push one:
#
#   (cd tools/images && go run . push -layout DIRECTORY/images/postern ghcr.io/postern-dev/postern:VERSION)
#
# The same sources, version and Go release give the same bytes, wherever and whenever
# it runs. SOURCE_DATE_EPOCH dates the files in archives and images, SOURCE_REVISION is
# what the images say was built; both are those of the commit unless they are set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

only_images=
[ "${1-}" != --images ] || { only_images=yes && shift; }
version=${1:?usage: tools/release.sh [--images] VERSION [DIRECTORY [GOOS/GOARCH...]]}
out=${2:-dist}
shift $(($# < 2 ? $# : 2))
platforms=("$@")
if [ ${#platforms[@]} -eq 0 ]; then
	platforms=(linux/amd64 linux/arm64)
	[ -n "$only_images" ] || platforms+=(darwin/amd64 darwin/arm64 windows/amd64)
fi
commands=(${RELEASE_COMMANDS:-postern postern-agent $([ ! -d operator/cmd/postern-operator ] || echo postern-operator)})
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
revision=${SOURCE_REVISION-$(git rev-parse HEAD 2>/dev/null || true)}
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
(cd tools/images && go build -trimpath -buildvcs=false -o "$work/images" .)

# module COMMAND prints the folder of the module that the program is in.
module() {
	if [ -d "cmd/$1" ]; then echo .; else echo operator; fi
}

# program OS ARCH COMMAND FOLDER builds a program and its bill of materials.
program() {
	local suffix=
	[ "$1" != windows ] || suffix=.exe
	(
		cd "$(module "$3")"
		GOOS=$1 GOARCH=$2 go build -trimpath -buildvcs=false \
			-ldflags="-s -w -buildid= -X postern.dev/postern/internal/cli/command.stamped=$version" \
			-o "$4/$3$suffix" "./cmd/$3"
	)
	"$work/sbom" "$4/$3$suffix" >"$4/$3.cdx.json"
}

# image COMMAND builds the image of a program for those platforms that are Linux.
image() {
	local description arguments=()
	case $1 in
	postern) description="Postern: the hub, the proxy and the command line" ;;
	postern-agent) description="Postern's agent, which dials out of a private network" ;;
	postern-operator) description="Postern's operator for Kubernetes" ;;
	esac
	for platform in "${platforms[@]}"; do
		[ "${platform%/*}" != linux ] || arguments+=(-program "$platform=$work/postern_${version}_${platform/\//_}/$1")
	done
	[ ${#arguments[@]} -gt 0 ] || return 0
	SOURCE_DATE_EPOCH=$epoch "$work/images" build -name "$1" -version "$version" -description "$description" \
		-revision "$revision" -out "$out/images" "${arguments[@]}"
}

for platform in "${platforms[@]}"; do
	os=${platform%/*} arch=${platform#*/}
	name=postern_${version}_${os}_${arch}
	mkdir -p "$work/$name"
	for command in "${commands[@]}"; do
		# The operator runs in clusters, and those are of Linux.
		[ "$(module "$command")" = . ] || [ "$os" = linux ] || continue
		program "$os" "$arch" "$command" "$work/$name"
		[ -n "$only_images" ] || cp "$work/$name/$command.cdx.json" "$out/${command}_${version}_${os}_${arch}.cdx.json"
	done
	[ -z "$only_images" ] || continue
	cp LICENSE README.md "$work/$name/"
	chmod -R u=rwX,go=rX "$work/$name"
	tar --create --directory="$work" --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner \
		--format=ustar "$name" | gzip --no-name -9 >"$out/$name.tar.gz"
	echo "$out/$name.tar.gz"
	[ "$os" != linux ] || SOURCE_DATE_EPOCH=$epoch tools/package.sh "$version" "$arch" "$work/$name" "$out"
done
for command in "${commands[@]}"; do
	image "$command"
done | sed "s|  $out/images/|  |" >"$work/DIGESTS"
if [ -s "$work/DIGESTS" ]; then
	cp "$work/DIGESTS" "$out/images/DIGESTS"
	sed "s|  |  $out/images/|" "$work/DIGESTS"
fi
[ -z "$only_images" ] || exit 0
(cd "$out" && find . -maxdepth 1 -type f \( -name "*.tar.gz" -o -name "*.deb" -o -name "*.cdx.json" \) -printf "%f\0" | LC_ALL=C sort -z | xargs -0 sha256sum -- >SHA256SUMS)
echo "$out/SHA256SUMS"
