package hub

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/joinstring"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/uplink"
	"postern.dev/postern/internal/wire"
)

// The shortest and longest life of a join string.
const (
	minJoinLife = time.Minute
	maxJoinLife = 30 * 24 * time.Hour
)

func (a *API) joinRoutes() {
	joins := api.PathOrganizations + "/{org}/joins"
	a.handle("GET "+joins, role.Read, a.listJoins)
	a.handle("POST "+joins, role.Operate, a.createJoin)
	a.handle("DELETE "+joins+"/{join}", role.Operate, a.revokeJoin)
	a.open("POST "+api.PathJoin, a.useJoin)
}

func (a *API) listJoins(r *http.Request) (any, error) {
	all, err := a.o.Registry.Joins(r.Context(), r.PathValue("org"))
	return convert(all, a.joinOf), err
}

func (a *API) createJoin(r *http.Request) (any, error) {
	var req api.CreateJoin
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	life := time.Duration(req.ExpiresIn) * time.Second
	if req.ExpiresIn > int64(maxJoinLife/time.Second) || life < minJoinLife {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "a join string cannot expire in %d seconds", req.ExpiresIn).
			WithHint("want between a minute and 30 days")
	}
	if _, err := uplink.ParseConnectURL(req.ConnectURL); err != nil {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "%s", err)
	}
	j, secret, err := a.o.Registry.CreateJoin(r.Context(), registry.Join{
		Organization: r.PathValue("org"), Agent: req.Agent, Description: req.Description, Further: req.FurtherKey, Expires: a.o.Now().Add(life),
	})
	if errors.Is(err, registry.ErrExists) {
		return nil, &api.Problem{
			Status: http.StatusConflict, Code: wire.CodeDenied.String(), Detail: fmt.Sprintf("agent %s is registered already", req.Agent),
			Hint: "choose another name; or let this one get a further key, if its own was lost, with --further-key",
		}
	}
	if err != nil {
		return nil, err
	}
	s := joinstring.String{
		ConnectURL: req.ConnectURL, Organization: j.Organization, Agent: j.Agent, ID: j.ID, Secret: secret, Expires: j.Expires,
	}
	if !a.o.PublicCA {
		s.Pins = []string{a.o.State.Authority().Pin()}
	}
	text, err := s.Encode()
	if err != nil {
		return nil, err
	}
	a.o.Log.Info("join string created", "organization", j.Organization, "agent", j.Agent, "join", j.ID, "expires", j.Expires)
	return api.NewJoin{
		ID: j.ID, Organization: j.Organization, Agent: j.Agent, Expires: j.Expires, ConnectURL: req.ConnectURL, CAPin: s.CAPin(), JoinString: text,
	}, nil
}

func (a *API) revokeJoin(r *http.Request) (any, error) {
	j, err := a.o.Registry.RevokeJoin(r.Context(), r.PathValue("org"), r.PathValue("join"))
	if err != nil {
		return nil, err
	}
	a.o.Log.Info("join string revoked", "organization", j.Organization, "agent", j.Agent, "join", j.ID, "used", j.KeyID != "")
	return nil, nil
}

// useJoin registers the key of an agent that shows a join string's secret. Nobody
// has to prove that he holds the private key: without it the registration is of
// no use, and with the secret he could have brought another one.
func (a *API) useJoin(r *http.Request) (any, error) {
	var req api.UseJoin
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	key, err := identity.ParsePublicKey([]byte(req.PublicKey))
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	j, err := a.o.Registry.UseJoin(r.Context(), req.Organization, req.ID, req.Secret, key)
	if err != nil {
		_, err = a.limitFailures(r, Caller{}, a.joinRefusal(req, err))
		return nil, err
	}
	n := noteOf(r)
	n.caller = Caller{Principal: identity.Principal{Kind: identity.KindAgent, Name: j.Agent}, Organization: j.Organization, Item: j.KeyID}
	n.object, n.what = "agent:"+j.Agent, "joined by "+j.ID
	a.o.Log.Info("agent joined", "organization", j.Organization, "agent", j.Agent, "join", j.ID, "key", j.KeyID, "source", sourceOf(r).String())
	return api.Joined{Organization: j.Organization, Agent: j.Agent, KeyID: j.KeyID}, nil
}

// joinRefusal words why a join string is not good. Who asks has proved nothing:
// without the secret there is one answer for all.
func (a *API) joinRefusal(req api.UseJoin, err error) error {
	const again = "make a new one with: postern agent new AGENT"
	refuse := func(format string, args ...any) *wire.Failure {
		return wire.Fail(wire.LegHub, wire.CodeUnauthenticated, format, args...).WithCause(err)
	}
	switch {
	case errors.Is(err, registry.ErrJoinUnknown):
		return refuse("this hub knows no join string %s: it was revoked, or is another hub's, or ended long ago", clip(req.ID)).WithHint("%s", again)
	case errors.Is(err, registry.ErrJoinExpired):
		return refuse("the join string %s has expired; by the hub's clock it is %s", clip(req.ID), a.o.Now().UTC().Format(time.RFC3339)).WithHint("%s", again)
	case errors.Is(err, registry.ErrJoinUsed):
		return refuse("the join string %s was used already, by another key", clip(req.ID)).
			WithHint("it is good once. If that was this agent, start it with the --state that it had then; if it lost that, " +
				"make a new string with: postern agent new AGENT --further-key. If it was somebody else, remove what joined: " +
				"postern agent join list, postern agent unregister AGENT")
	case errors.Is(err, registry.ErrExists):
		return refuse("the agent was registered in another way after its join string %s was made", clip(req.ID)).
			WithHint("start it with the key that it was registered with, or make a new string with: postern agent new AGENT --further-key")
	}
	return err
}

func (a *API) joinOf(j registry.Join) api.Join {
	state := api.JoinOpen
	switch {
	case j.KeyID != "":
		state = api.JoinUsed
	case a.o.Now().After(j.Expires):
		state = api.JoinExpired
	}
	return api.Join{
		ID: j.ID, Organization: j.Organization, Agent: j.Agent, State: state, FurtherKey: j.Further,
		Created: j.Created, Expires: j.Expires, Used: j.Used, KeyID: j.KeyID,
	}
}
