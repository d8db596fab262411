package controller

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"postern.dev/postern/internal/uplink"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/presence"
)

// Hub is where a hub is, and which of its organizations is meant.
type Hub struct {
	presence.Hub
	Organization string
}

// Ports of a hub where its address names none.
const (
	hubPort = 4222
	webPort = 443
)

// hubOf returns which hub a Proxy is for: what it says, and for the rest what the operator says.
// One that names another hub does not get the operator's authority, which is that of its own hub.
func hubOf(p v1alpha1.Object, own Hub) (Hub, *problem) {
	h := own
	if o := p.HubOverride(); o != nil {
		if o.ConnectURL != "" && o.ConnectURL != own.ConnectURL {
			h.ConnectURL, h.CA, h.CAPin = o.ConnectURL, "", ""
		}
		if o.CABundle != "" {
			h.CA, h.CAPin = o.CABundle, ""
		}
		h.Organization = cmp.Or(o.Organization, h.Organization)
	}
	switch {
	case h.ConnectURL == "":
		return h, &problem{ReasonHubNotConfigured, "Neither the operator nor this Proxy says where the hub is. " +
			"Set hub.connectUrl in the operator's chart (--connect-url), or spec.hub.connectUrl here."}
	case strings.HasPrefix(h.ConnectURL, "wss://") && h.CA == "" && h.CAPin == "":
		return h, &problem{ReasonHubNotConfigured, "A hub behind wss:// needs its CA, so that what ends TLS on the way cannot pose as the hub. " +
			"Set spec.hub.caBundle to the hub's ca.crt."}
	case h.Organization == "":
		return h, &problem{ReasonHubNotConfigured, "Neither the operator nor this Proxy names an organization. " +
			"Set hub.organization in the operator's chart (--organization), or spec.hub.organization here."}
	}
	return h, h.unusable()
}

// unusable says what is wrong with the hub's address or CA, before a proxy is started with them: it
// would not come up.
func (h Hub) unusable() *problem {
	if _, err := uplink.ParseConnectURL(h.ConnectURL); err != nil {
		return &problem{ReasonHubNotConfigured, fmt.Sprintf("The hub's address cannot be used: %v. Mend hub.connectUrl in the operator's chart, or spec.hub.connectUrl here.", err)}
	}
	if h.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(h.CA)) {
		return &problem{ReasonHubNotConfigured, "The hub's CA has no certificate that can be read. " +
			"Put the text of the hub's ca.crt into hub.ca of the operator's chart, or spec.hub.caBundle here."}
	}
	return nil
}

// endpoint returns the hub's port, and its address if it is one and no name.
func (h Hub) endpoint() (address netip.Addr, port int) {
	u, err := url.Parse(h.ConnectURL)
	if err != nil {
		return netip.Addr{}, hubPort
	}
	port = hubPort
	if u.Scheme == "wss" || u.Scheme == "https" {
		port = webPort
	}
	if p, err := strconv.Atoi(u.Port()); err == nil {
		port = p
	}
	address, _ = netip.ParseAddr(strings.Trim(u.Hostname(), "[]")) // a name has none
	return address.Unmap(), port
}

// cidr returns an address as a network of its own.
func cidr(a netip.Addr) string {
	return (&net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}).String()
}
