//go:build !unix

package hub

import "os"

// lockDir refuses to run a hub where a directory cannot be locked.
func lockDir(dir string) (*os.File, error) {
	return nil, stateError(ErrStatePermission, dir, "a hub needs a Unix system, such as Linux or macOS")
}
