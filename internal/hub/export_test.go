package hub

import "postern.dev/postern/internal/role"

// Route is a route of the API, for tests.
type Route struct {
	Pattern string
	Need    role.Permission
	Known   bool
}

// Routes returns all routes that go through answer.
func (a *API) Routes() []Route {
	all := make([]Route, 0, len(a.table))
	for _, r := range a.table {
		all = append(all, Route{Pattern: r.pattern, Need: r.need, Known: r.known})
	}
	return all
}
