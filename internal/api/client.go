package api

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"postern.dev/postern/internal/wire"
)

// maxResponse bounds what a Client reads of an answer, in bytes: about ten
// thousand replicas.
const maxResponse = 16 << 20

// Client talks to a hub. Its methods are safe for concurrent use; their errors
// are *wire.Failure, with a *Problem in the chain when the hub answered. Their
// contexts limit their time.
type Client struct {
	BaseURL string       // https://HOST[:PORT], without a slash at its end
	HTTP    *http.Client // how to reach it; follows no redirects
	Token   string       // an administrator's or robot's token; empty where none is needed
}

// Organizations returns all organizations, by name.
func (c *Client) Organizations(ctx context.Context) ([]Organization, error) {
	return get[[]Organization](ctx, c, PathOrganizations, nil)
}

// CreateOrganization makes an organization.
func (c *Client) CreateOrganization(ctx context.Context, name string) (Organization, error) {
	return post[Organization](ctx, c, PathOrganizations, CreateOrganization{Name: name})
}

// DeleteOrganization removes an organization with all that belongs to it. The
// default organization, and one that still has robots, needs force.
func (c *Client) DeleteOrganization(ctx context.Context, name string, force bool) error {
	query := url.Values{}
	if force {
		query.Set("force", "true")
	}
	return c.remove(ctx, organizationPath(name), query)
}

// Robots returns an organization's robots, by name.
func (c *Client) Robots(ctx context.Context, org string) ([]Robot, error) {
	return get[[]Robot](ctx, c, robotsPath(org), nil)
}

// CreateRobot makes a robot in an organization.
func (c *Client) CreateRobot(ctx context.Context, org string, r CreateRobot) (Robot, error) {
	return post[Robot](ctx, c, robotsPath(org), r)
}

// DeleteRobot removes a robot with its tokens.
func (c *Client) DeleteRobot(ctx context.Context, org, robot string) error {
	return c.remove(ctx, robotsPath(org)+"/"+url.PathEscape(robot), nil)
}

// RobotTokens returns a robot's tokens, by name.
func (c *Client) RobotTokens(ctx context.Context, org, robot string) ([]RobotToken, error) {
	return get[[]RobotToken](ctx, c, tokensPath(org, robot), nil)
}

// CreateRobotToken makes a token for a robot. The hub shows it this once.
func (c *Client) CreateRobotToken(ctx context.Context, org, robot string, t CreateToken) (NewToken, error) {
	return post[NewToken](ctx, c, tokensPath(org, robot), t)
}

// DeleteRobotToken revokes the robot's token with the given name or access ID.
func (c *Client) DeleteRobotToken(ctx context.Context, org, robot, token string) error {
	return c.remove(ctx, tokensPath(org, robot)+"/"+url.PathEscape(token), nil)
}

// Registrations returns the agents of an organization that enrol with key pairs,
// by ID.
func (c *Client) Registrations(ctx context.Context, org string) ([]Registration, error) {
	return get[[]Registration](ctx, c, registrationsPath(org), nil)
}

// Registration returns one registered agent with its keys.
func (c *Client) Registration(ctx context.Context, org, agent string) (Registration, error) {
	return get[Registration](ctx, c, registrationPath(org, agent), nil)
}

// RegisterAgent registers an agent with its first public keys.
func (c *Client) RegisterAgent(ctx context.Context, org string, r RegisterAgent) (Registration, error) {
	return post[Registration](ctx, c, registrationsPath(org), r)
}

// UnregisterAgent removes an agent's registration with its keys.
func (c *Client) UnregisterAgent(ctx context.Context, org, agent string) error {
	return c.remove(ctx, registrationPath(org, agent), nil)
}

// AddAgentKey gives a registered agent a further public key, in PEM.
func (c *Client) AddAgentKey(ctx context.Context, org, agent, publicKey string) (AgentKey, error) {
	return post[AgentKey](ctx, c, registrationPath(org, agent)+"/keys", AddAgentKey{PublicKey: publicKey})
}

// RemoveAgentKey removes the key with the given ID from a registered agent; the
// first eight digits suffice where they name one.
func (c *Client) RemoveAgentKey(ctx context.Context, org, agent, key string) error {
	return c.remove(ctx, registrationPath(org, agent)+"/keys/"+url.PathEscape(key), nil)
}

// Agents returns an organization's agents, by ID.
func (c *Client) Agents(ctx context.Context, org string) ([]Agent, error) {
	return get[[]Agent](ctx, c, PathAgents, url.Values{"organization": {org}})
}

// Agent returns one agent of an organization.
func (c *Client) Agent(ctx context.Context, org, id string) (Agent, error) {
	return get[Agent](ctx, c, PathAgents+"/"+url.PathEscape(id), url.Values{"organization": {org}})
}

// HubVersion returns the hub's version. It needs no token.
func (c *Client) HubVersion(ctx context.Context) (HubVersion, error) {
	return get[HubVersion](ctx, c, PathVersion, nil)
}

// CA returns the hub's certificate authorities in PEM. It needs no token, and so
// proves nothing by itself: compare the pin.
func (c *Client) CA(ctx context.Context) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.BaseURL+PathCA, nil)
	if err != nil {
		return nil, badURL(c.BaseURL, err)
	}
	body, _, err := c.do(req)
	return body, err
}

func organizationPath(org string) string { return PathOrganizations + "/" + url.PathEscape(org) }
func robotsPath(org string) string       { return organizationPath(org) + "/robots" }
func tokensPath(org, robot string) string {
	return robotsPath(org) + "/" + url.PathEscape(robot) + "/tokens"
}

func registrationsPath(org string) string { return organizationPath(org) + "/agents" }
func registrationPath(org, agent string) string {
	return registrationsPath(org) + "/" + url.PathEscape(agent)
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	var into T
	target := c.BaseURL + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return into, badURL(c.BaseURL, err)
	}
	_, err = c.send(req, &into)
	return into, err
}

func post[T any](ctx context.Context, c *Client, path string, body any) (T, error) {
	return submit[T](ctx, c, http.MethodPost, path, body)
}

func patch[T any](ctx context.Context, c *Client, path string, body any) (T, error) {
	return submit[T](ctx, c, http.MethodPatch, path, body)
}

func submit[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var into T
	b, err := json.Marshal(body)
	if err != nil {
		return into, wire.Fail(wire.LegClient, wire.CodeInternal, "encode request: %s", err).WithCause(err)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.BaseURL+path, bytes.NewReader(b))
	if err != nil {
		return into, badURL(c.BaseURL, err)
	}
	req.Header.Set("Content-Type", TypeJSON)
	_, err = c.send(req, &into)
	return into, err
}

func (c *Client) remove(ctx context.Context, path string, query url.Values) error {
	target := c.BaseURL + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, target, nil)
	if err != nil {
		return badURL(c.BaseURL, err)
	}
	_, _, err = c.do(req)
	return err
}

// send does a request, decodes its answer and returns the hub's time.
func (c *Client) send(req *http.Request, into any) (time.Time, error) {
	req.Header.Set("Accept", TypeJSON)
	body, date, err := c.do(req)
	if err != nil {
		return date, err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return date, wire.Fail(wire.LegHub, wire.CodeProtocol, "the hub's answer could not be read: %s", err).WithCause(err).
			WithHint("check that %s is a hub, and that its version fits this program's", req.URL.Host)
	}
	return date, nil
}

// do does a request and returns the answer's body, and the hub's time.
func (c *Client) do(req *http.Request) ([]byte, time.Time, error) {
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	res, err := c.HTTP.Do(req)
	if err != nil {
		return nil, time.Time{}, transportFailure(req.Context(), err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxResponse+1))
	if err != nil {
		return nil, time.Time{}, transportFailure(req.Context(), err)
	}
	date, _ := http.ParseTime(res.Header.Get("Date")) // zero if it is missing
	if res.StatusCode < 200 || res.StatusCode > 299 {
		p := readProblem(res, body)
		p.HubTime = date
		if s, err := strconv.ParseUint(strings.TrimSpace(res.Header.Get("Retry-After")), 10, 16); err == nil {
			p.RetryAfter = time.Duration(s) * time.Second
		}
		return nil, date, p.failure()
	}
	if len(body) > maxResponse {
		return nil, date, wire.Fail(wire.LegHub, wire.CodeProtocol, "the hub's answer is longer than %d bytes", maxResponse)
	}
	return body, date, nil
}

// stream asks for what is read bit by bit, and returns the answer's body, which the
// caller closes. It may be as long as it likes.
func (c *Client) stream(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.BaseURL+path, nil)
	if err != nil {
		return nil, badURL(c.BaseURL, err)
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	res, err := c.HTTP.Do(req)
	if err != nil {
		return nil, transportFailure(ctx, err)
	}
	if res.StatusCode == http.StatusOK {
		return res.Body, nil
	}
	defer res.Body.Close()
	problem, err := io.ReadAll(io.LimitReader(res.Body, maxResponse))
	if err != nil {
		return nil, transportFailure(ctx, err)
	}
	return nil, readProblem(res, problem).failure()
}
