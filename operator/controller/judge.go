package controller

import (
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"postern.dev/postern/internal/wire"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/presence"
)

// Reasons of the condition Ready.
const (
	ReasonConnected         = "Connected"         // pods reach the private network
	ReasonAgentNotConnected = "AgentNotConnected" // no replica of the agent is connected to the hub
	ReasonAgentRevoked      = "AgentRevoked"      // the hub keeps the agent out by its name
	ReasonProxyNotReady     = "ProxyNotReady"     // no pod of the proxy is ready
	ReasonPasswordNotTaken  = "PasswordNotTaken"  // the hub's own proxy does not take the Proxy's password, or not yet
	ReasonProxyUnreachable  = "ProxyUnreachable"  // the hub's own proxy does not answer the operator
	ReasonSecretMissing     = "SecretMissing"     // the Secret of the robot's token is not there
	ReasonSecretKeyMissing  = "SecretKeyMissing"  // it has no such key
	ReasonTokenInvalid      = "TokenInvalid"      // what it holds is no token
	ReasonTokenRefused      = "TokenRefused"      // the hub does not take the token
	ReasonHubUnreachable    = "HubUnreachable"    // the hub does not answer the operator
	ReasonHubNotConfigured  = "HubNotConfigured"  // nobody says where the hub is
	ReasonNameTaken         = "NameTaken"         // an object has a name that the operator needs
	ReasonNotApplied        = "NotApplied"        // the API server refused what the operator makes
	ReasonInvalidSelector   = "InvalidSelector"   // the podSelector cannot be used
	ReasonInvalidAgentID    = "InvalidAgentID"
)

// Condition Applied tells whether what the operator makes is as it wants it.
const (
	ConditionApplied     = "Applied"
	ReasonApplied        = "Applied"
	ReasonFieldsOfOthers = "FieldsOfOthers" // another manager has set some of the fields
)

// grace is how long a Proxy stays Connected while nobody can tell: streams that run need neither
// the operator nor the hub's API.
const grace = 30 * time.Second

// problem is what keeps a Proxy from working, and what to do about it.
type problem struct{ reason, message string }

// facts is what is known of a Proxy.
type facts struct {
	agentID string
	now     time.Time
	secret  v1alpha1.SecretKeyRef
	where   Hub
	problem *problem       // so that the hub was not asked
	asked   error          // of asking the hub; nil: agent is its answer
	agent   presence.Agent // as the hub sees it
	applied bool           // what the operator makes is there
	ready   int32          // pods of the proxy
	why     string         // no pod is ready; may be empty
	foreign *problem       // fields that others have set
	byHub   string         // Service of the hub's own proxy, if that is the Proxy's; ready then says whether it takes the password
	told    bool           // that one has a line for the Proxy
	// credentials is the Secret with the lines of the hub's own proxy, NAMESPACE/NAME.
	credentials string
	front       error // of asking it whether it takes the password; nil: it does
}

// judge returns the status that follows from the one before and from what is known. It keeps the
// conditions of others.
func judge(before v1alpha1.ProxyStatus, generation int64, f facts) v1alpha1.ProxyStatus {
	after := *before.DeepCopy()
	if before.AgentID != f.agentID {
		after.Phase = "" // of another agent
	}
	after.AgentID, after.ObservedGeneration, after.ReadyProxies = f.agentID, generation, f.ready
	status, found := f.verdict()
	after.Phase = phase(after.Phase, f, meta.FindStatusCondition(before.Conditions, v1alpha1.ConditionReady))
	meta.SetStatusCondition(&after.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: status, Reason: found.reason, Message: found.message,
		ObservedGeneration: generation, LastTransitionTime: metav1.NewTime(f.now),
	})
	applied := metav1.Condition{
		Type: ConditionApplied, Status: metav1.ConditionTrue, Reason: ReasonApplied, Message: "All that the operator makes is as it wants it.",
		ObservedGeneration: generation, LastTransitionTime: metav1.NewTime(f.now),
	}
	if !f.applied && f.problem != nil {
		applied.Status, applied.Reason, applied.Message = metav1.ConditionFalse, f.problem.reason, f.problem.message
	}
	if f.foreign != nil {
		applied.Status, applied.Reason, applied.Message = metav1.ConditionFalse, f.foreign.reason, f.foreign.message
	}
	meta.SetStatusCondition(&after.Conditions, applied)
	if f.knows() {
		after.Replicas = replicas(before.Replicas, f.agent)
	}
	after.LastError = ""
	switch {
	case f.knows():
		after.LastError = f.agent.LastError()
	case f.asked != nil:
		after.LastError = clip(f.asked.Error())
	}
	return after
}

// knows reports whether the hub told how the agent is.
func (f facts) knows() bool { return f.problem == nil && f.asked == nil }

// works reports whether pods reach the private network.
func (f facts) works() bool { return f.knows() && f.agent.Connected && f.ready > 0 && f.front == nil }

// unsure reports whether nobody can tell whether pods do.
func (f facts) unsure() bool {
	return !f.knows() || f.agent.Connected && f.front != nil && !notTaken(f.front)
}

// phase returns the phase after one.
func phase(before v1alpha1.Phase, f facts, ready *metav1.Condition) v1alpha1.Phase {
	switch {
	case f.works():
		return v1alpha1.PhaseConnected
	case before != v1alpha1.PhaseConnected && before != v1alpha1.PhaseDisconnected:
		return v1alpha1.PhaseWaitingForProxy
	case f.byHub != "" && !f.told: // the hub's proxy was told to let nobody in
		return v1alpha1.PhaseDisconnected
	case before == v1alpha1.PhaseConnected && f.unsure() && recent(ready, f.now):
		return v1alpha1.PhaseConnected
	default:
		return v1alpha1.PhaseDisconnected
	}
}

// recent reports whether a Proxy was ready until a short time ago.
func recent(ready *metav1.Condition, now time.Time) bool {
	return ready != nil && (ready.Status == metav1.ConditionTrue || now.Sub(ready.LastTransitionTime.Time) < grace)
}

// verdict returns the condition Ready.
func (f facts) verdict() (metav1.ConditionStatus, problem) {
	switch {
	case f.problem != nil:
		return metav1.ConditionFalse, *f.problem
	case f.asked != nil:
		return f.unanswered()
	case f.agent.Revoked:
		return metav1.ConditionFalse, problem{ReasonAgentRevoked, fmt.Sprintf(
			"Agent %s of organization %s is revoked. If that is a mistake: postern agent restore %s", f.agentID, f.where.Organization, f.agentID)}
	case !f.agent.Connected:
		return metav1.ConditionFalse, problem{ReasonAgentNotConnected, fmt.Sprintf(
			"No replica of agent %s is connected to organization %s of the hub %s. Install the agent in the private network with agent.agentId=%s and agent.organization=%s; "+
				"if it is there, look at its log.", f.agentID, f.where.Organization, f.where.ConnectURL, f.agentID, f.where.Organization)}
	case f.front != nil:
		return f.closed()
	case f.ready == 0:
		why := "Look at the pods of the Deployment with kubectl describe."
		if f.why != "" {
			why = f.why
		}
		return metav1.ConditionFalse, problem{ReasonProxyNotReady, "No pod of the proxy is ready. " + why}
	case f.byHub != "":
		return metav1.ConditionTrue, problem{ReasonConnected, fmt.Sprintf("Agent %s is connected, and the hub's own proxy %s takes this Proxy's password.", f.agentID, f.byHub)}
	default:
		return metav1.ConditionTrue, problem{ReasonConnected, fmt.Sprintf("Agent %s is connected, and the proxy reaches the hub.", f.agentID)}
	}
}

// closed is the verdict when the hub's own proxy did not say that it takes the password.
func (f facts) closed() (metav1.ConditionStatus, problem) {
	if notTaken(f.front) {
		return metav1.ConditionFalse, problem{ReasonPasswordNotTaken, fmt.Sprintf(
			"The hub's own proxy %s does not take this Proxy's password yet: pods get status 407. The hub's node brings the Secret %s into its pod within a minute or two. "+
				"If it stays so, see that the hub's chart has proxy.credentialsSecret=%s, and look at the hub's log.", f.byHub, f.credentials, f.credentials[strings.IndexByte(f.credentials, '/')+1:])}
	}
	text := strings.TrimRight(clip(wire.AsFailure(f.front, wire.LegProxy).Error()), ".")
	return metav1.ConditionUnknown, problem{ReasonProxyUnreachable, fmt.Sprintf(
		"The operator cannot ask the hub's own proxy %s whether it takes this Proxy's password: %s. Check that proxy.enabled is set in the hub's chart, and that the NetworkPolicies let the operator through: "+
			"its own out to that port, and that of the hub (proxy.from) in.", f.byHub, text)}
}

// notTaken reports whether a proxy answered that it does not take a password.
func notTaken(err error) bool {
	return err != nil && wire.AsFailure(err, wire.LegProxy).Code == wire.CodeUnauthenticated
}

// unanswered is the verdict when the hub did not say how the agent is.
func (f facts) unanswered() (metav1.ConditionStatus, problem) {
	failure := wire.AsFailure(f.asked, wire.LegHub)
	text := strings.TrimRight(clip(failure.Error()), ".")
	switch {
	case failure.Leg == wire.LegClient && failure.Code == wire.CodeBadRequest: // see refused, too
		return metav1.ConditionFalse, problem{ReasonTokenInvalid, fmt.Sprintf("Key %s of Secret %s: %s.", f.secret.Key, f.secret.Name, text)}
	case failure.Code == wire.CodeUnauthenticated || failure.Code == wire.CodeDenied:
		return metav1.ConditionFalse, problem{ReasonTokenRefused, fmt.Sprintf(
			"The hub %s refuses the token in key %s of Secret %s: %s. Put a valid one there, made with: postern robot token create ROBOT NAME -a %s",
			f.where.ConnectURL, f.secret.Key, f.secret.Name, text, f.where.Organization)}
	default:
		return metav1.ConditionUnknown, problem{ReasonHubUnreachable, fmt.Sprintf(
			"The operator cannot ask the hub %s: %s. Streams that run go on. Check that the hub runs and that the operator's NetworkPolicy lets it through.",
			f.where.ConnectURL, text)}
	}
}

// replicas tells of those that are connected. A round-trip time that is much as before stays, so
// that the status does not change with every look.
func replicas(before []v1alpha1.AgentReplica, a presence.Agent) []v1alpha1.AgentReplica {
	known := make(map[string]string, len(before))
	for _, r := range before {
		known[r.Name] = r.RoundTripTime
	}
	var all []v1alpha1.AgentReplica
	for _, r := range a.Replicas {
		if r.State != "ready" && r.State != "draining" || len(all) == maxReplicas {
			continue
		}
		one := v1alpha1.AgentReplica{Name: r.Name, Version: r.Version}
		if rtt := time.Duration(r.RTTMillis * float64(time.Millisecond)); rtt > 0 {
			one.RoundTripTime = rtt.Round(max(rtt/100, 10*time.Microsecond)).String()
			if old, err := time.ParseDuration(known[r.Name]); err == nil && rtt < 2*old && old < 2*rtt {
				one.RoundTripTime = known[r.Name]
			}
		}
		all = append(all, one)
	}
	return all
}

// Bounds of a status.
const (
	maxReplicas = 50
	maxText     = 512 // bytes of what others said
)

func clip(text string) string { return wire.Clip(text, maxText) }
