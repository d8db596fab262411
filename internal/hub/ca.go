package hub

import (
	"net/http"

	"postern.dev/postern/internal/api"
)

func (a *API) listAuthorities(*http.Request) (any, error) { return a.o.Rotation.List(), nil }

func (a *API) rotateCA(r *http.Request) (any, error) {
	var req api.RotateCA
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	return a.o.Rotation.Rotate(req.AtOnce)
}

func (a *API) retireCA(r *http.Request) (any, error) {
	_, err := a.o.Rotation.Retire(r.Context(), r.PathValue("pin"), r.URL.Query().Get("force") == "true")
	return nil, err
}
