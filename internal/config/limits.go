package config

import "postern.dev/postern/internal/limit"

// DefaultLimits are the limits at a hub: nobody meets them on the first day, and a
// hub that many share stands what one of them does.
func DefaultLimits() limit.Table {
	return limit.Table{
		limit.Organization: {Streams: 10_000, Opens: 5_000, Bytes: limit.Unlimited, Agents: 1_000, Connections: 10_000},
		limit.Agent:        {Streams: 8_192, Opens: 5_000, Bytes: limit.Unlimited},
		limit.Proxy:        {Streams: 4_096, Opens: 5_000, Bytes: limit.Unlimited},
	}
}

// DefaultAgentLimits are the limits that an agent has of its own, for each replica.
func DefaultAgentLimits() limit.Table {
	return limit.Table{limit.Proxy: {Streams: 4_096}}
}

func limitField(p *[]string, usage string) *Field {
	return list("limit", "LEVEL.LIMIT=VALUE", p, usage)
}

// Limits returns the hub's defaults for parties that have no limits of their own.
func (h *Hub) Limits() limit.Table { return limitsOver(h.Limit, DefaultLimits()) }

// Limits returns the limits that the agent's owner sets.
func (a *Agent) Limits() limit.Table { return limitsOver(a.Limit, DefaultAgentLimits()) }

// limitsOver reads settings, those that check accepts, over what holds without them.
func limitsOver(settings []string, initial limit.Table) limit.Table {
	var t limit.Table
	for _, s := range settings {
		_ = t.ParseSetting(s)
	}
	for level := range t {
		t[level] = t[level].Or(initial[level])
	}
	return t
}

// limits checks settings of limits.
func (c *checker) limits(setting string, settings []string, levels ...limit.Level) {
	for _, text := range settings {
		var t limit.Table
		if err := t.ParseSetting(text); err != nil {
			c.fail(setting, "", "%v", err)
			continue
		}
		for _, level := range levels {
			t[level] = limit.Limits{}
		}
		if t != (limit.Table{}) {
			c.fail(setting, "the hub's settings and postern limit set have it", "%q is none of an agent's limits", text)
		}
	}
}
