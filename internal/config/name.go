package config

import (
	"crypto/rand"
	"strings"
)

// suffixLen is the length of the random end of a derived name: 36^5 values keep
// the processes of one host apart.
const suffixLen = 5

// ReplicaName derives the name of a replica: POD_NAME, which is unique already,
// or else the host's name with a random end, since nothing keeps two processes
// of one host from serving the same agent.
func ReplicaName(env Environment) string {
	if pod, ok := env.LookupEnv("POD_NAME"); ok {
		if name := sanitize(pod, 63); name != "" {
			return name
		}
	}
	host := ""
	if env.Hostname != nil {
		host, _ = env.Hostname() // without a name the random end has to do
	}
	short, _, _ := strings.Cut(host, ".")
	if name := sanitize(short, 63-1-suffixLen); name != "" {
		return name + "-" + randomEnd()
	}
	return "replica-" + randomEnd()
}

// sanitize turns a name into an RFC 1123 label of at most limit characters, or "".
func sanitize(name string, limit int) string {
	b := []byte(strings.ToLower(name))
	for i, c := range b {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			b[i] = '-'
		}
	}
	s := strings.TrimLeft(string(b), "-")
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.TrimRight(s, "-")
}

func randomEnd() string {
	return strings.ToLower(rand.Text()[:suffixLen])
}
