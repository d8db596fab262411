package inject

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"postern.dev/postern/operator/selection"
)

// ours finds the variables that an earlier plan put into a container: they stand together, and
// begin with the password of a proxy. It returns where they begin and how many they are; without
// any, the end and none.
func ours(env []corev1.EnvVar) (first, count int) {
	first = slices.IndexFunc(env, isPassword)
	if first < 0 {
		return len(env), 0
	}
	end := first + 1
	for end < len(env) && usesPassword(env[end]) {
		end++
	}
	if end == first+1 {
		return first, 1
	}
	// NO_PROXY is ours if it follows at once, in both spellings and with one value.
	if rest := env[end:]; len(rest) >= 2 && rest[0].Name == noProxyPair[0] && rest[1].Name == noProxyPair[1] &&
		rest[0].Value != "" && rest[0].Value == rest[1].Value {
		end += 2
	}
	return first, end - first
}

func isPassword(v corev1.EnvVar) bool {
	if v.Name != passwordVariable || v.ValueFrom == nil || v.ValueFrom.SecretKeyRef == nil {
		return false
	}
	ref := v.ValueFrom.SecretKeyRef
	return ref.Key == SecretKey && strings.HasPrefix(ref.Name, selection.SecretPrefix)
}

func usesPassword(v corev1.EnvVar) bool {
	known := slices.ContainsFunc(pairs, func(pair [2]string) bool { return v.Name == pair[0] || v.Name == pair[1] })
	return known && strings.HasPrefix(v.Value, "http://") && strings.Contains(v.Value, ":$("+passwordVariable+")@")
}

func sameVariable(a, b corev1.EnvVar) bool { return equality.Semantic.DeepEqual(a, b) }
