package agent

import (
	"encoding/json"
	"log/slog"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/limit"
)

// newQuota returns the book of limits that hold at this replica, for all proxies
// together and for each.
func newQuota(cfg config.Agent, log *slog.Logger) *limit.Book {
	own := cfg.Limits()
	return limit.NewBook(limit.Options{
		Defaults: own,
		Hint: func(r *limit.Refusal) string {
			name, value := r.Key.Level.String()+"."+r.Kind.String(), "N"
			if own[r.Key.Level].Get(r.Kind) == r.Limit {
				return "wait until others have ended; the owner of the agent can raise it with --limit " + name + "=" + value
			}
			return "wait until others have ended; the hub's administrator can raise it with: postern limit set --" + r.Kind.String() +
				" " + value + " --" + r.Key.Level.String() + " " + r.Key.Name + " -a " + r.Key.Organization
		},
		Refused: func(r *limit.Refusal) {
			log.Warn("limit reached; this is told once a minute at most", "limit", r.Error())
		},
	})
}

// limitBy makes the limits of the hub's orders hold, where they are stricter than the
// owner's. Without any only the owner's hold.
func (a *Agent) limitBy(orders json.RawMessage) {
	var o limit.Orders
	if len(orders) > 0 {
		if err := json.Unmarshal(orders, &o); err != nil {
			a.log.Warn("limits of the hub are not in force here; upgrade the agent", "error", err)
			return
		}
	}
	a.quota.Obey(a.cfg.Limits(), o, a.cfg.Organization)
}
