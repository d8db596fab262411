package identitytoken

import (
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Reasons of events of pods.
const (
	ReasonFailed     = "IdentityTokenFailed"     // the token cannot be had, or not be renewed
	ReasonIssued     = "IdentityTokenIssued"     // it is there, after it had failed
	ReasonInvalid    = "IdentityTokenInvalid"    // what the pod asks for cannot be
	ReasonNotMounted = "IdentityTokenNotMounted" // the pod was made without the file
)

// maxTold bounds how many of the pods that want one token are told of it.
const maxTold = 5

// again is when a pod is told the same once more: events are kept for an hour.
const again = 50 * time.Minute

// topic is what a pod is told about, and saying what it was told, and when.
type (
	topic struct {
		pod    types.UID
		reason string
	}
	saying struct {
		text string
		at   time.Time
	}
)

func (k *Keeper) event(pod *corev1.Pod, kind, reason, text string) {
	if k.c.Event != nil {
		k.c.Event(pod, kind, reason, text)
	}
}

// warn tells a pod what is wrong, unless it was told that lately.
func (k *Keeper) warn(pod *corev1.Pod, reason, format string, args ...any) {
	text, now := fmt.Sprintf(format, args...), k.c.Now()
	about := topic{pod.UID, reason}
	if last, ok := k.told[about]; ok && last.text == text && now.Sub(last.at) < again {
		return
	}
	k.told[about] = saying{text, now}
	k.event(pod, corev1.EventTypeWarning, reason, text)
}

// tellPod tells a pod why it has no file with its token, if it lies in the pod.
func (k *Keeper) tellPod(pod *corev1.Pod, w Want, wants bool, err error) {
	switch {
	case err != nil:
		k.warn(pod, ReasonInvalid, "%v", err)
	case !wants:
	case !mounts(pod, w):
		k.warn(pod, ReasonNotMounted, "The pod was made without its identity token, when the operator gave none yet or its webhook was not asked; "+
			"delete the pod, and the next one has it")
	}
}

// mounts reports whether a pod has the volume with its token.
func mounts(pod *corev1.Pod, w Want) bool {
	for _, v := range pod.Spec.Volumes {
		if v.Secret != nil && v.Secret.SecretName == w.SecretName() {
			return true
		}
	}
	return false
}

// forgetTold forgets pods that are gone.
func (k *Keeper) forgetTold(pods []corev1.Pod) {
	if len(k.told) == 0 {
		return
	}
	there := make(map[types.UID]bool, len(pods))
	for i := range pods {
		there[pods[i].UID] = true
	}
	maps.DeleteFunc(k.told, func(about topic, _ saying) bool { return !there[about.pod] })
}

// tellFailures tells the pods whose token was just asked for in vain, and those that get it after all.
func (k *Keeper) tellFailures(wanted map[key]demand) {
	for at, d := range wanted {
		k.mu.Lock()
		f := k.failed[at]
		k.mu.Unlock()
		for _, pod := range d.pods[:min(len(d.pods), maxTold)] {
			about := topic{pod.UID, ReasonFailed}
			if f.times > 0 {
				k.warn(pod, ReasonFailed, "No new identity token of %s can be had: %s", d.Name, f.text)
			} else if _, ok := k.told[about]; ok {
				delete(k.told, about)
				k.event(pod, corev1.EventTypeNormal, ReasonIssued, "The identity token of "+d.Name+" is there")
			}
		}
	}
}
