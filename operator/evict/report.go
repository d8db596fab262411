package evict

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"postern.dev/postern/operator/selection"
)

// Conditions of a Proxy about its pods.
const (
	ConditionPodsUpdated = "PodsUpdated" // all pods are as the Proxy wants them
	ConditionConflict    = "Conflict"    // another Proxy selects some of the same pods
)

// Reasons of these conditions.
const (
	ReasonUpToDate        = "UpToDate"
	ReasonRestarting      = "Restarting"      // pods are being replaced
	ReasonWaitingForProxy = "WaitingForProxy" // pods are not moved before the proxy runs
	ReasonWebhookDown     = "WebhookDown"     // the API server does not ask the webhook, so that new pods were no better
	ReasonEvictionBlocked = "EvictionBlocked" // by a disruption budget, or since it failed
	ReasonNotInjected     = "NotInjected"     // new pods are not pointed to the proxy: the webhook is not asked
	ReasonNoController    = "NoController"    // nobody would make these pods again
	ReasonPodsShared      = "PodsSelectedTwice"
	ReasonNoConflict      = "NoConflict"
)

// Obstacle is a pod that cannot be replaced, and why.
type Obstacle struct {
	Pod    string // NAMESPACE/NAME
	Reason string
}

// Conflict is a pod that two Proxies select.
type Conflict struct {
	Pod           string // NAMESPACE/NAME
	Winner, Loser selection.Key
}

// Report says how the pods of one Proxy are. Its lists are in the order of their names.
type Report struct {
	Proxy      selection.Key
	Pods       int        // that belong to it
	Pending    int        // are not as they should be, and will be replaced
	Injected   int        // that were pointed to it, whether they should be or not
	Held       bool       // some wait until the proxy runs
	Webhook    string     // why the webhook is not asked, for which some wait
	Blocked    []Obstacle // could not be evicted, and will be tried again
	Stuck      []Obstacle // owners whose new pods are no better
	Orphans    []string   // pods that nobody would make again
	Conflicts  []Conflict
	Namespaces []string // where its pods are, which need its password
}

// Settled reports whether everything was done that can be: the selector is applied.
func (r *Report) Settled() bool { return r.Pending == 0 && len(r.Stuck) == 0 }

// Conditions tells of the report in two conditions, for a generation of the Proxy.
func (r *Report) Conditions(generation int64) []metav1.Condition {
	status, reason, message := r.updated()
	conditions := []metav1.Condition{
		{Type: ConditionPodsUpdated, Status: status, Reason: reason, Message: message, ObservedGeneration: generation},
		{Type: ConditionConflict, Status: metav1.ConditionFalse, Reason: ReasonNoConflict, Message: "No other Proxy selects pods of this one.", ObservedGeneration: generation},
	}
	if len(r.Conflicts) > 0 {
		c := &conditions[1]
		c.Status, c.Reason = metav1.ConditionTrue, ReasonPodsShared
		var list []string
		for _, one := range r.Conflicts {
			list = append(list, fmt.Sprintf("pod %s is selected by %s, which is older and wins, and by %s", one.Pod, one.Winner, one.Loser))
		}
		c.Message = sentence(some(list, "; "))
	}
	return conditions
}

func (r *Report) updated() (metav1.ConditionStatus, string, string) {
	describe := func(what string, all []Obstacle) string {
		var list []string
		for _, o := range all {
			list = append(list, fmt.Sprintf("%s %s: %s", what, o.Pod, o.Reason))
		}
		return sentence(some(list, "; "))
	}
	switch {
	case len(r.Stuck) > 0:
		return metav1.ConditionFalse, ReasonNotInjected, describe("new pods of", r.Stuck)
	case len(r.Blocked) > 0:
		return metav1.ConditionFalse, ReasonEvictionBlocked, describe("pod", r.Blocked)
	case r.Held:
		return metav1.ConditionFalse, ReasonWaitingForProxy, fmt.Sprintf("%s until the proxy runs.", count(r.Pending, "pod waits", "pods wait"))
	case r.Webhook != "":
		return metav1.ConditionFalse, ReasonWebhookDown, fmt.Sprintf("%s until the API server asks the webhook about new pods: %s.", count(r.Pending, "pod waits", "pods wait"), strings.TrimRight(r.Webhook, "."))
	case r.Pending > 0:
		return metav1.ConditionFalse, ReasonRestarting, fmt.Sprintf("%s to be replaced, of one owner after the other.", count(r.Pending, "pod is", "pods are"))
	case len(r.Orphans) > 0:
		return metav1.ConditionFalse, ReasonNoController, sentence("nobody would make these pods again, so that they were left as they are; delete and create them: " + some(r.Orphans, ", "))
	default:
		return metav1.ConditionTrue, ReasonUpToDate, fmt.Sprintf("%s through the proxy.", count(r.Pods, "pod goes", "pods go"))
	}
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// some joins the first of many.
func some(list []string, separator string) string {
	const most = 4
	if rest := len(list) - most; rest > 0 {
		list = append(slices.Clone(list[:most]), fmt.Sprintf("and %d more", rest))
	}
	return strings.Join(list, separator)
}

// sentence begins with a capital and ends with a full stop.
func sentence(text string) string {
	return strings.ToUpper(text[:1]) + text[1:] + "."
}
