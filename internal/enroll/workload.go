package enroll

import (
	"context"
	"fmt"
	"strings"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/wire"
)

// WorkloadToken is the Secret of a workload: a token of an issuer that the
// organization trusts, such as a projected service account token of Kubernetes. The
// file is read again at each renewal, because what wrote it replaces it.
type WorkloadToken struct {
	File string
}

// SubjectToken implements Secret.
func (w *WorkloadToken) SubjectToken(context.Context) (token, tokenType string, err error) {
	b, _, err := readFile(w.File)
	if err != nil {
		return "", "", workloadFailure(w.File, plain(err))
	}
	token = strings.TrimSpace(string(b))
	switch err = tooLong(b); {
	case err != nil:
	case token == "":
		err = fmt.Errorf("it is empty")
	case strings.Count(token, ".") != 2 || strings.ContainsFunc(token, func(r rune) bool { return !isTokenRune(r) }):
		err = fmt.Errorf("it holds something else than a JWT")
	}
	if err != nil {
		return "", "", workloadFailure(w.File, err)
	}
	return token, api.TokenTypeJWT, nil
}

func workloadFailure(name string, err error) error {
	return wire.Fail(wire.LegHub, wire.CodeBadRequest, "workload token file %s cannot be used: %s", name, err).WithCause(err).
		WithHint("in Kubernetes, mount a projected volume with a serviceAccountToken there")
}
