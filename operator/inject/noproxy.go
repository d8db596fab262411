package inject

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// maxEntry bounds an entry of NO_PROXY, in bytes: the length of a host name.
const maxEntry = 253

// always is what never goes through a proxy: the pod itself, and the places where clouds hand out
// credentials of the machine that the pod runs on. Single addresses and no ranges, since programs
// that know no ranges are common.
var always = []string{
	"localhost", "127.0.0.1", "::1",
	"169.254.169.254", "fd00:ec2::254", "metadata.google.internal", // AWS, Azure, Google and others
	"169.254.170.2", "169.254.170.23", "fd00:ec2::23", // roles of ECS tasks and EKS pods
}

// reserved are the names by which a private cluster's API server is known on the far side. They
// go through the proxy; an entry that keeps them from it would break what it is for.
var reserved = []string{"kubernetes.default.svc.cluster.local", "kubernetes.default.svc", "kubernetes.default"}

// CheckNoProxy says why an entry cannot be one of NO_PROXY for all pods, or returns nil. An entry
// is a host name, a domain, an address or a range of addresses.
func CheckNoProxy(entry string) error {
	if err := checkEntry(entry); err != nil {
		return err
	}
	name := strings.TrimPrefix(strings.TrimPrefix(strings.ToLower(entry), "*"), ".")
	for _, r := range reserved {
		if name == "" || r == name || strings.HasSuffix(r, "."+name) {
			return fmt.Errorf("%q would keep https://%s, an API server on the far side, away from the proxy", entry, r)
		}
	}
	return nil
}

func checkEntry(entry string) error {
	if entry == "" || len(entry) > maxEntry {
		return fmt.Errorf("an entry of NO_PROXY has 1 to %d bytes", maxEntry)
	}
	for _, c := range []byte(entry) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && !strings.ContainsRune(".-_:/*[]", rune(c)) {
			return fmt.Errorf("%q is not an entry of NO_PROXY: want a host name, a domain, an address or a range of addresses", entry)
		}
	}
	if strings.Contains(entry, "/") {
		if _, err := netip.ParsePrefix(entry); err != nil {
			return fmt.Errorf("%q is not a range of addresses such as 10.96.0.0/12", entry)
		}
	}
	return nil
}

// noProxy is the value of NO_PROXY: the API server first, as the pod and as the operator know it.
func noProxy(apiServers, extra []string) string {
	var list []string
	add := func(entries []string) {
		for _, e := range entries {
			if e != "" && !slices.Contains(list, e) {
				list = append(list, e)
			}
		}
	}
	for _, host := range apiServers {
		if CheckNoProxy(host) == nil {
			add([]string{host})
		}
	}
	add(always)
	add(extra)
	return strings.Join(list, ",")
}
