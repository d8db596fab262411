package hub

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/controlplane"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/issuer"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
)

// issuerDir holds, in the state directory, the signing keys of the issuer of identity
// tokens; they are in backups as all that is there.
const issuerDir = "issuer"

// openIssuer makes the issuer of identity tokens, if the settings have one.
func (h *Hub) openIssuer() (*issuer.Issuer, error) {
	c := h.cfg.Identity
	if c.IssuerURL == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	keys, err := issuer.OpenKeys(issuer.Place{Mounted: c.KeysDir, Secret: c.KeysSecret, Own: h.state.Path(issuerDir), Cluster: h.pod})
	if err != nil {
		return nil, err
	}
	var metrics *observe.Issuer
	if h.opt.Registry != nil {
		metrics = observe.NewIssuer(h.opt.Registry)
	}
	return issuer.Open(issuer.Config{
		URL: c.IssuerURL, Keys: keys, Schedule: issuer.Schedule{Age: c.KeyAge, Ahead: c.KeyAhead}, Type: issuer.KeyType(c.KeyType),
		Metrics: metrics, Log: h.log.With("part", "issuer"),
	})
}

// issuerEntrance is the issuer's documents on the one port. A path of the issuer's URL
// may be a cluster's in the gateway: these two are not the cluster's then.
func issuerEntrance(i *issuer.Issuer, next http.Handler) http.Handler {
	if i == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if i.Owns(r) {
			i.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (a *API) identityRoutes() {
	org := api.PathOrganizations + "/{org}"
	a.open("POST "+org+"/identity-tokens", a.createIdentityToken)
	a.handle("PUT "+org+"/robots/{robot}/identity-for", role.Administer, a.setIdentityFor)
	a.handle("GET "+api.PathIssuerKeys, role.Hub, a.listIssuerKeys)
	a.handle("POST "+api.PathIssuerKeys, role.Hub, a.rotateIssuer)
	a.handle("DELETE "+api.PathIssuerKeys+"/{key}", role.Hub, a.withdrawIssuerKey)
}

// createIdentityToken makes an identity token for a robot that may speak for the
// control plane.
func (a *API) createIdentityToken(r *http.Request) (any, error) {
	org := r.PathValue("org")
	c, err := a.caller(r)
	if err != nil {
		return nil, err
	}
	if c.Kind != identity.KindRobot || c.Organization != org {
		return nil, wire.Fail(wire.LegHub, wire.CodeDenied, "%s may not have identity tokens of organization %q: they are for robots of it", c.Principal, clip(org)).
			WithHint("use the token of a robot that was made with: postern robot create NAME --identity-for CONTROL-PLANE -a %s", clip(org))
	}
	if err := a.hasIssuer(); err != nil {
		return nil, err
	}
	var req api.CreateIdentityToken
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	plane, err := controlplane.ParseRef(req.ControlPlane)
	if err != nil {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "%v", err)
	}
	note := noteOf(r)
	note.object, note.what = "identity-token", "issue for control plane "+plane.String()+", provider "+clip(req.Provider)
	if err := a.mayIdentify(r.Context(), c, plane); err != nil {
		return nil, err
	}
	if wait := a.pace.Wait(c.Organization+"/"+c.Name, a.o.Now()); wait > 0 {
		return nil, &api.Problem{
			Status: http.StatusTooManyRequests, Code: wire.CodeOverloaded.String(), RetryAfter: max(wait.Round(time.Second), time.Second),
			Detail: fmt.Sprintf("%s asks for identity tokens too often", c.Principal),
			Hint:   "keep each token for half of its hour",
		}
	}
	t, err := a.o.Issuer.Mint(issuer.Request{Account: org, ControlPlane: plane, Provider: req.Provider, Audiences: req.Audiences})
	if err != nil {
		return nil, err
	}
	note.object = "identity-token:" + t.ID
	note.what = "issue to " + t.Subject + " for " + strings.Join(t.Audiences, ", ")
	a.o.Log.Debug("identity token issued", "organization", org, "robot", c.Name, "subject", t.Subject, "audiences", t.Audiences, "id", t.ID)
	return api.IdentityToken{Token: t.Value, Subject: t.Subject, Audiences: t.Audiences, ID: t.ID, IssuedAt: t.IssuedAt, Expires: t.Expires}, nil
}

// mayIdentify returns nil if a robot may speak for a control plane.
func (a *API) mayIdentify(ctx context.Context, c Caller, plane controlplane.Ref) error {
	robot, err := a.o.Registry.Robot(ctx, c.Organization, c.Name)
	if err != nil {
		return err
	}
	patterns, err := controlplane.ParsePatterns(robot.IdentityFor)
	if err != nil {
		return fmt.Errorf("control planes of robot %s: %w", robot.Name, err)
	}
	if controlplane.Match(patterns, plane) {
		return nil
	}
	may := "for none"
	if len(robot.IdentityFor) > 0 {
		may = "only for " + strings.Join(robot.IdentityFor, ", ")
	}
	return wire.Fail(wire.LegHub, wire.CodeDenied, "%s may not speak for control plane %s, %s", c.Principal, plane, may).
		WithHint("if it is to, an administrator says so with: postern robot identity-for %s %s -a %s", robot.Name, strings.Join(append(robot.IdentityFor, plane.String()), " "), c.Organization)
}

// hasIssuer returns nil if the hub issues identity tokens.
func (a *API) hasIssuer() error {
	if a.o.Issuer != nil {
		return nil
	}
	return &api.Problem{
		Status: http.StatusNotFound, Code: wire.CodeBadRequest.String(), Detail: "this hub issues no identity tokens",
		Hint: "start it with --issuer-url https://HOST, the name under which relying parties reach it",
	}
}

func (a *API) setIdentityFor(r *http.Request) (any, error) {
	var req api.SetIdentityFor
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	robot, err := a.o.Registry.SetIdentityFor(r.Context(), r.PathValue("org"), r.PathValue("robot"), req.ControlPlanes)
	if err != nil {
		return nil, err
	}
	noteOf(r).what = "may speak for " + strings.Join(robot.IdentityFor, ", ")
	if len(robot.IdentityFor) == 0 {
		noteOf(r).what = "may speak for no control plane"
	}
	a.o.Log.Info("control planes of a robot set", "organization", robot.Organization, "robot", robot.Name, "control_planes", robot.IdentityFor)
	return robotOf(robot), nil
}

func (a *API) listIssuerKeys(*http.Request) (any, error) {
	if err := a.hasIssuer(); err != nil {
		return nil, err
	}
	return a.o.Issuer.Describe(), nil
}

func (a *API) rotateIssuer(r *http.Request) (any, error) {
	var req api.RotateIssuer
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	if err := a.hasIssuer(); err != nil {
		return nil, err
	}
	noteOf(r).object, noteOf(r).what = "issuer", "rotate"
	if err := a.o.Issuer.Rotate(req.AtOnce); err != nil {
		return nil, err
	}
	return a.listIssuerKeys(r)
}

func (a *API) withdrawIssuerKey(r *http.Request) (any, error) {
	if err := a.hasIssuer(); err != nil {
		return nil, err
	}
	id, err := a.o.Issuer.Withdraw(r.PathValue("key"))
	if err != nil {
		return nil, err
	}
	noteOf(r).object, noteOf(r).what = "issuer/key:"+id, "withdraw"
	return nil, nil
}
