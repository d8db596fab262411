package command

import (
	"runtime/debug"
	"strings"
)

// stamped is the version of a release. The linker sets it (tools/release.sh), which can
// set nothing but a variable.
var stamped string

// Version returns the version of this program: that of its release, or the module's,
// as the go command recorded it, or "devel" with the commit that it was built from.
func Version() string {
	if stamped != "" {
		return stamped
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision, dirty := "", ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "+dirty"
			}
		}
	}
	return strings.TrimSuffix("devel-"+revision, "-") + dirty
}
