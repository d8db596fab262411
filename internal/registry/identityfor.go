package registry

import (
	"context"
	"fmt"
	"slices"

	"postern.dev/postern/internal/controlplane"
)

// SetIdentityFor says for which control planes a robot may ask for identity tokens, as
// controlplane.ParsePattern reads them; none takes the right away. It holds for the next
// request; tokens that were made stay good for their hour. Without such a robot it
// returns ErrNotFound.
func (r *Registry) SetIdentityFor(ctx context.Context, org, name string, patterns []string) (Robot, error) {
	if _, err := controlplane.ParsePatterns(patterns); err != nil {
		return Robot{}, fmt.Errorf("%w: %w", ErrPattern, err)
	}
	if _, err := r.Robot(ctx, org, name); err != nil {
		return Robot{}, err
	}
	var robot Robot
	rev, err := r.get(ctx, robotKey(org, name), &robot)
	if err == nil {
		robot.IdentityFor = slices.Clone(patterns)
		err = r.update(ctx, robotKey(org, name), robot, rev)
	}
	if err != nil {
		return Robot{}, fmt.Errorf("set what robot %q in organization %q may speak for: %w", name, org, err)
	}
	return robot, nil
}
