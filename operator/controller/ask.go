package controller

import (
	"context"
	"crypto/sha256"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"postern.dev/postern/internal/wire"
	"postern.dev/postern/operator/api/v1alpha1"
)

// ask asks the hub for the agent, with the Proxy's token.
func (r *Reconciler) ask(ctx context.Context, p v1alpha1.Object, f *facts) error {
	token, missing, err := r.token(ctx, p)
	if err != nil || missing != nil {
		f.problem = missing
		return err
	}
	r.noteToken(p, token, f.byHub != "")
	f.agent, f.asked = r.Hubs.Agent(ctx, f.where.Hub, f.where.Organization, f.agentID, token)
	r.Metrics.Asked(f.asked)
	return nil
}

// noteToken tells of a token that was replaced, and who uses it: a proxy of the Proxy's own, or the
// operator alone.
func (r *Reconciler) noteToken(p v1alpha1.Object, token []byte, byHub bool) {
	sum := sha256.Sum256(token)
	m := r.remember(p)
	r.mu.Lock()
	changed := m.token != sum && m.token != [sha256.Size]byte{}
	m.token = sum
	r.mu.Unlock()
	if changed {
		ref := p.Common().SecretRef
		use := "the proxy takes it within seconds, once the node has brought it into the pods"
		if byHub {
			use = "the operator asks the hub with it from now on"
		}
		r.event(p, corev1.EventTypeNormal, "TokenChanged", fmt.Sprintf("Key %s of Secret %s holds another token; %s.", ref.Key, ref.Name, use))
	}
}

// admit brings the line of a Proxy into the file of the hub's proxy once the hub has taken its
// token, and out of it when the hub refuses the token. As long as nobody can tell, it stays.
func (r *Reconciler) admit(ctx context.Context, p v1alpha1.Object, f *facts) error {
	var line, password string
	var err error
	switch {
	case f.problem != nil || refused(f.asked):
	case f.asked != nil:
		if f.told, err = r.hasLine(ctx, p); f.told {
			f.ready = p.State().ReadyProxies // as it was
		}
		return err
	default:
		if line, password, err = r.line(ctx, p, f); err != nil {
			return err
		}
	}
	changed, err := writeLine(ctx, r.Client, r.Direct, r.HubProxy.Credentials, p, line)
	if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsNotFound(err) {
		f.applied, f.problem = false, &problem{ReasonNotApplied, clip(fmt.Sprintf("The Secret %s of the hub's own proxy cannot be written: %v.", r.HubProxy.Credentials, err))}
		return nil
	}
	if err != nil {
		return err
	}
	if line != "" {
		f.told = true
		r.try(ctx, p, f, line, password, changed)
	}
	switch {
	case changed && line != "":
		r.event(p, corev1.EventTypeNormal, "PasswordGiven", fmt.Sprintf("The Secret %s has a line with the hash of this Proxy's password; "+
			"the hub's own proxy takes it once its node has brought it there.", r.HubProxy.Credentials))
	case changed:
		r.event(p, corev1.EventTypeWarning, "PasswordWithdrawn", fmt.Sprintf("The line of this Proxy was taken out of the Secret %s: "+
			"the hub takes no token of it.", r.HubProxy.Credentials))
	}
	return nil
}

// try asks the hub's own proxy whether it takes the password that has a line: the line counts only
// once the hub's node has brought it there. What it has taken is asked again now and then, and when
// the line was written anew.
func (r *Reconciler) try(ctx context.Context, p v1alpha1.Object, f *facts, line, password string, anew bool) {
	sum := sha256.Sum256([]byte(line + "\n" + password))
	m := r.remember(p)
	r.mu.Lock()
	taken := m.taken == sum && !anew && r.now().Sub(m.takenAt) < askFrontAgain
	r.mu.Unlock()
	if !taken {
		f.front = r.Front.Takes(ctx, f.agentID, password)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case taken:
		f.ready = 1
	case f.front == nil:
		f.ready, m.taken, m.takenAt = 1, sum, r.now()
	case notTaken(f.front):
		m.taken = [sha256.Size]byte{}
	default:
		f.ready, m.taken = p.State().ReadyProxies, [sha256.Size]byte{} // as it was: nobody can tell
	}
}

// refused reports whether the hub answered, and did not take the token.
func refused(err error) bool {
	if err == nil {
		return false
	}
	f := wire.AsFailure(err, wire.LegHub)
	return f.Code == wire.CodeUnauthenticated || f.Code == wire.CodeDenied || f.Leg == wire.LegClient && f.Code == wire.CodeBadRequest
}
