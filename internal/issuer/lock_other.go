//go:build !unix

package issuer

import "errors"

// lockDir refuses to change keys where a directory cannot be locked.
func lockDir(string) (unlock func(), err error) {
	return nil, errors.New("an issuer needs a Unix system, such as Linux or macOS")
}
