#!/usr/bin/env bash
# Looks for known vulnerabilities in what Postern links, with the pinned govulncheck.
#
# The database of vulnerabilities is on the network (GOVULNDB, https://vuln.go.dev). Where
# it cannot be reached nothing is checked; that is said loudly and is no failure,
# unless VULNCHECK_REQUIRED=1, which is for machines that have a network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
db=${GOVULNDB:-https://vuln.go.dev}

reachable() {
	case $db in
	file://*) [ -r "${db#file://}/index/db.json" ] ;;
	*) curl --silent --fail --location --max-time 15 --output /dev/null "$db/index/db.json" ;;
	esac
}

if ! reachable; then
	cat >&2 <<-TEXT
		**********************************************************************
		NOT CHECKED for known vulnerabilities: $db cannot be reached.
		Run make vulncheck where there is a network, or set GOVULNDB to a copy.
		**********************************************************************
	TEXT
	[ "${VULNCHECK_REQUIRED:-0}" != 1 ] || exit 1
	exit 0
fi

binary=$(cd tools/govulncheck && GOWORK=off GOFLAGS=-mod=readonly go build -trimpath -o "${TMPDIR:-/tmp}/" \
	golang.org/x/vuln/cmd/govulncheck && echo "${TMPDIR:-/tmp}/govulncheck")
for module in . test/*/; do
	[ -f "$module/go.mod" ] || continue
	echo "vulncheck $module"
	(cd "$module" && "$binary" -db "$db" -test ./...)
done
