// Package secretfile says whether a file with a secret is kept from others, for every part that
// reads one.
package secretfile

import "io/fs"

// Exposed reports whether others than those who have to may read a regular file. Anybody's reading
// is too much. A group's is too much where the file is our own: its owner can take the right away.
// A file of another owner can only reach us by its group, which is how Kubernetes mounts Secrets
// for pods that do not run as root (fsGroup, mode 0440).
func Exposed(info fs.FileInfo) bool {
	if !info.Mode().IsRegular() {
		return false
	}
	return exposed(info.Mode().Perm(), ownedByUs(info))
}

func exposed(mode fs.FileMode, ours bool) bool {
	return mode&0o007 != 0 || ours && mode&0o070 != 0
}
