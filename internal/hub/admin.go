package hub

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/controlplane"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
)

// maxTokenLife bounds the life of a robot token that expires.
const maxTokenLife = 10 * 365 * 24 * time.Hour

// listOrganizations lists the organizations in which the caller has any business.
func (a *API) listOrganizations(r *http.Request) (any, error) {
	all, err := a.o.Registry.Organizations(r.Context())
	if err != nil {
		return nil, err
	}
	c := callerOf(r)
	var roles map[string][]role.Role
	if c.Kind == identity.KindUser && !c.Hub {
		if roles, err = a.o.Registry.AllRoles(r.Context(), c.Name, c.Groups); err != nil {
			return nil, err
		}
	}
	all = slices.DeleteFunc(all, func(o registry.Organization) bool {
		return !c.Admin() && !c.Hub && o.Name != c.Organization && len(roles[o.Name]) == 0
	})
	return convert(all, organizationOf), nil
}

func (a *API) createOrganization(r *http.Request) (any, error) {
	var req api.CreateOrganization
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	org, err := a.o.Organizations.Create(r.Context(), req.Name)
	if err != nil {
		return nil, err
	}
	a.o.Log.Info("organization created", "organization", org.Name)
	return organizationOf(org), nil
}

func (a *API) deleteOrganization(r *http.Request) (any, error) {
	name := r.PathValue("org")
	if r.URL.Query().Get("force") != "true" {
		if err := a.checkDisposable(r, name); err != nil {
			return nil, err
		}
	}
	err := a.o.Organizations.Delete(r.Context(), name)
	if err := errors.Join(err, a.enforce(r, registry.Ground{Organization: name})); err != nil {
		return nil, err
	}
	a.o.Log.Info("organization deleted", "organization", name)
	return nil, nil
}

// checkDisposable refuses to delete without force what others may rely on.
func (a *API) checkDisposable(r *http.Request, org string) error {
	robots, err := a.o.Registry.Robots(r.Context(), org)
	if err != nil {
		return err
	}
	refuse := func(format string, args ...any) error {
		return &api.Problem{
			Status: http.StatusConflict, Code: wire.CodeDenied.String(), Detail: fmt.Sprintf(format, args...),
			Hint: "if you mean it, delete it with --force: its robots, tokens and connections go with it",
		}
	}
	if org == registry.DefaultOrganization {
		return refuse("organization %q is the one that commands use unless told otherwise", org)
	}
	if len(robots) > 0 {
		return refuse("organization %q still has robots: %d", org, len(robots))
	}
	agents, err := a.o.Registry.Agents(r.Context(), org)
	if err != nil {
		return err
	}
	if len(agents) > 0 {
		return refuse("organization %q still has registered agents: %d", org, len(agents))
	}
	return nil
}

func (a *API) listRobots(r *http.Request) (any, error) {
	all, err := a.o.Registry.Robots(r.Context(), r.PathValue("org"))
	return convert(all, robotOf), err
}

func (a *API) createRobot(r *http.Request) (any, error) {
	var req api.CreateRobot
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	if _, err := controlplane.ParsePatterns(req.IdentityFor); err != nil {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "%v", err)
	}
	robot, err := a.o.Registry.CreateRobot(r.Context(), r.PathValue("org"), req.Name, req.Description)
	if err != nil {
		return nil, err
	}
	if len(req.IdentityFor) > 0 {
		if robot, err = a.o.Registry.SetIdentityFor(r.Context(), robot.Organization, robot.Name, req.IdentityFor); err != nil {
			return nil, err
		}
	}
	a.o.Log.Info("robot created", "organization", robot.Organization, "robot", robot.Name)
	return robotOf(robot), nil
}

func (a *API) deleteRobot(r *http.Request) (any, error) {
	org, robot := r.PathValue("org"), r.PathValue("robot")
	err := a.o.Registry.DeleteRobot(r.Context(), org, robot)
	if err := errors.Join(err, a.enforce(r, registry.Ground{Organization: org, Kind: registry.GroundRobot, Name: robot})); err != nil {
		return nil, err
	}
	a.o.Log.Info("robot deleted", "organization", org, "robot", robot)
	return nil, nil
}

func (a *API) listTokens(r *http.Request) (any, error) {
	all, err := a.o.Registry.Tokens(r.Context(), r.PathValue("org"), r.PathValue("robot"))
	return convert(all, tokenOf), err
}

func (a *API) createToken(r *http.Request) (any, error) {
	var req api.CreateToken
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	if req.ExpiresIn < 0 || req.ExpiresIn > int64(maxTokenLife/time.Second) {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "a token cannot expire in %d seconds", req.ExpiresIn).
			WithHint("want 0 for never, or at most ten years")
	}
	var expires time.Time
	if req.ExpiresIn > 0 {
		expires = a.o.Now().Add(time.Duration(req.ExpiresIn) * time.Second)
	}
	token, secret, err := a.o.Registry.CreateToken(
		r.Context(), r.PathValue("org"), r.PathValue("robot"), req.Name, expires, a.o.State.Tokens().SignRobot)
	if err != nil {
		return nil, err
	}
	a.o.Log.Info("robot token created", "organization", token.Organization, "robot", token.Robot, "name", token.Name, "access_id", token.AccessID)
	return api.NewToken{AccessID: token.AccessID, Token: secret}, nil
}

func (a *API) deleteToken(r *http.Request) (any, error) {
	org, robot, token := r.PathValue("org"), r.PathValue("robot"), r.PathValue("token")
	err := a.o.Registry.DeleteToken(r.Context(), org, robot, token)
	if err := errors.Join(err, a.enforce(r, registry.Ground{Organization: org, Kind: registry.GroundRobot, Name: robot})); err != nil {
		return nil, err
	}
	a.o.Log.Info("robot token revoked", "organization", org, "robot", robot, "name", token)
	return nil, nil
}

// enforce takes back what was issued on grounds that a deletion removed, also when
// it stopped half way. The caller may go away meanwhile.
func (a *API) enforce(r *http.Request, pattern registry.Ground) error {
	return a.o.Issued.Enforce(context.WithoutCancel(r.Context()), pattern)
}

// convert applies f to all; an empty list stays a list in JSON.
func convert[A, B any](all []A, f func(A) B) []B {
	out := make([]B, 0, len(all))
	for _, x := range all {
		out = append(out, f(x))
	}
	return out
}

func organizationOf(o registry.Organization) api.Organization {
	return api.Organization{Name: o.Name, Created: o.Created}
}

func robotOf(r registry.Robot) api.Robot {
	return api.Robot{Organization: r.Organization, Name: r.Name, Description: r.Description, IdentityFor: r.IdentityFor, Created: r.Created}
}

func tokenOf(t registry.Token) api.RobotToken {
	return api.RobotToken{
		Organization: t.Organization, Robot: t.Robot, Name: t.Name, AccessID: t.AccessID,
		Created: t.Created, Expires: t.Expires, LastUsed: t.LastUsed,
	}
}
