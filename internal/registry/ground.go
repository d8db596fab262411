package registry

import (
	"context"
	"errors"
	"fmt"
)

// The kinds of Ground.
const (
	GroundRobot = "robot" // a robot's token
	GroundAgent = "agent" // an agent's key
	GroundAdmin = "admin" // the administrator's token
	GroundUser  = "user"  // a person's session

	GroundWorkload = "workload" // a trusted issuer's token
)

// Ground is what credentials were issued on: what has to vanish for them to be
// revoked. It is comparable.
type Ground struct {
	Organization string `json:"organization"`
	Kind         string `json:"kind"`
	Name         string `json:"name,omitempty"` // of the robot, agent, user or workload
	Item         string `json:"item,omitempty"` // the token's access ID, the key's ID, the session's, or the trust's UID
}

// String returns the ground for logs.
func (g Ground) String() string {
	switch g.Kind {
	case GroundRobot:
		return fmt.Sprintf("token %s of robot %s/%s", g.Item, g.Organization, g.Name)
	case GroundAgent:
		return fmt.Sprintf("key %s of agent %s/%s", g.Item, g.Organization, g.Name)
	case GroundUser:
		return fmt.Sprintf("session %s of user %s, for organization %s", g.Item, g.Name, g.Organization)
	case GroundWorkload:
		return fmt.Sprintf("trust in workload %s of organization %s", g.Name, g.Organization)
	default:
		return "administrator's token, for organization " + g.Organization
	}
}

// CheckGround says whether a ground still stands: nil, or ErrRevoked when the
// token, key, session or trust, or what it belongs to, is gone.
func (r *Registry) CheckGround(ctx context.Context, g Ground) error {
	var err error
	switch g.Kind {
	case GroundRobot:
		var owner Robot
		if owner, err = r.Robot(ctx, g.Organization, g.Name); err != nil {
			break
		}
		var t Token
		if _, err = r.get(ctx, tokenKey(g.Organization, g.Name, g.Item), &t); err == nil && t.RobotUID != owner.UID {
			err = ErrRevoked
		}
	case GroundAgent:
		_, _, err = r.findAgentKey(ctx, g.Organization, g.Name, g.Item)
	case GroundUser:
		err = r.checkUserGround(ctx, g)
	case GroundWorkload:
		err = r.checkWorkloadGround(ctx, g)
	case GroundAdmin:
		_, err = r.Organization(ctx, g.Organization)
	default:
		return fmt.Errorf("check ground of credentials: kind %q is unknown", g.Kind)
	}
	if errors.Is(err, ErrNotFound) {
		return ErrRevoked
	}
	return err
}
