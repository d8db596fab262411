package policy

import "net/netip"

// special is a range of addresses that a name may not lead to: they mean the
// agent's own machine, its immediate surroundings, or the cloud's metadata
// service, which hands out credentials to whoever asks.
type special struct {
	prefix netip.Prefix
	bits   int // how long the prefix of a rule has to be to count as naming the range
	what   string
}

// specials returns the ranges. Metadata services come first because some lie
// inside a wider range and deserve the more telling name.
func specials() []special {
	list := []struct {
		prefix string
		bits   int
		what   string
	}{
		{"169.254.169.254/32", 16, "a cloud metadata address"},
		{"169.254.170.2/32", 16, "a cloud metadata address"},
		{"169.254.170.23/32", 16, "a cloud metadata address"},
		{"100.100.100.200/32", 24, "a cloud metadata address"},
		{"168.63.129.16/32", 24, "a cloud metadata address"},
		{"192.0.0.192/32", 24, "a cloud metadata address"},
		{"fd00:ec2::/32", 32, "a cloud metadata address"},
		{"fd20:ce::254/128", 32, "a cloud metadata address"},
		{"fd00:42::42/128", 32, "a cloud metadata address"},
		{"127.0.0.0/8", 8, "a loopback address"},
		{"::1/128", 128, "a loopback address"},
		{"169.254.0.0/16", 16, "a link-local address"},
		{"fe80::/10", 10, "a link-local address"},
		{"0.0.0.0/8", 8, "an unspecified address"},
		{"::/128", 128, "an unspecified address"},
		{"224.0.0.0/4", 4, "a multicast address"},
		{"ff00::/8", 8, "a multicast address"},
		{"255.255.255.255/32", 32, "the broadcast address"},
		// A translator decides what an address of this range embeds, so that
		// nobody here can tell whether it leads to one of those above.
		{"64:ff9b:1::/48", 48, "a locally translated address"},
	}
	out := make([]special, len(list))
	for i, s := range list {
		out[i] = special{netip.MustParsePrefix(s.prefix), s.bits, s.what}
	}
	return out
}

// embedding is a range of IPv6 addresses that carry an IPv4 address, which a
// translator or tunnel on the way may unpack.
type embedding struct {
	prefix netip.Prefix
	offset int  // of the four bytes
	invert bool // Teredo stores them inverted
}

// embeddings returns the ranges.
func embeddings() []embedding {
	return []embedding{
		{netip.MustParsePrefix("64:ff9b::/96"), 12, false},      // NAT64, RFC 6052
		{netip.MustParsePrefix("::ffff:0:0:0/96"), 12, false},   // SIIT, RFC 2765
		{netip.MustParsePrefix("::/96"), 12, false},             // IPv4-compatible, RFC 4291
		{netip.MustParsePrefix("2002::/16"), 2, false},          // 6to4, RFC 3056
		{netip.MustParsePrefix("2001::/32"), 12, true},          // Teredo, RFC 4380
		{netip.MustParsePrefix("::ffff:0.0.0.0/96"), 12, false}, // IPv4-mapped, RFC 4291
	}
}

// classifier says which addresses are special. Immutable.
type classifier struct {
	specials   []special
	embeddings []embedding
}

func newClassifier() *classifier { return &classifier{specials(), embeddings()} }

// special returns the special range that a (unmapped) lies in, or whose IPv4
// address it embeds. It returns nil for an ordinary address.
func (c *classifier) special(a netip.Addr) *special {
	for i := range c.specials {
		if c.specials[i].prefix.Contains(a) {
			return &c.specials[i]
		}
	}
	if v4, ok := c.embedded(a); ok {
		return c.special(v4)
	}
	return nil
}

func (c *classifier) embedded(a netip.Addr) (netip.Addr, bool) {
	if !a.Is6() {
		return netip.Addr{}, false
	}
	raw := a.As16()
	for _, e := range c.embeddings {
		if !e.prefix.Contains(a) {
			continue
		}
		v4 := [4]byte(raw[e.offset : e.offset+4])
		if e.invert {
			for i := range v4 {
				v4[i] ^= 0xff
			}
		}
		return netip.AddrFrom4(v4), true
	}
	return netip.Addr{}, false
}

// names reports whether the rule names the address a, of the special range s
// (nil for none), closely enough: a network must not be wider than the range
// asks, so that 0.0.0.0/0 is no permission for 127.0.0.1.
func (r Rule) names(a netip.Addr, s *special) bool {
	if r.kind != ruleAddress || !r.prefix.Contains(a) {
		return false
	}
	if s == nil {
		return true
	}
	if !s.prefix.Contains(a) { // a embeds an address of the range
		return r.bare || r.prefix.IsSingleIP()
	}
	return r.prefix.Bits() >= s.bits
}
