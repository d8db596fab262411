package hub

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/time/rate"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

// Bounds of the credentials that are remembered, and of how fast they are issued:
// each costs a signature and a write to the disk, which all organizations share.
const (
	maxIssuedPerOrg    = 50_000 // with those that were revoked and have not expired
	maxIssuedPerGround = 25_000 // issued on one token or key
	exchangesPerSecond = 50     // of one organization
	exchangesAtOnce    = 1_000
)

// roster counts the issuances of each organization. Issued.mu guards it.
type roster struct {
	orgs    map[string]*orgRoster
	grounds map[registry.Ground]int // that stand
	book    *limit.Book             // says how many agents there may be; nil: any number
}

type orgRoster struct {
	issuances int
	agents    map[string]int // agent IDs with issuances that stand, and how many each has
	pace      *rate.Limiter
}

func newRoster() *roster {
	return &roster{orgs: make(map[string]*orgRoster), grounds: make(map[registry.Ground]int)}
}

func (r *roster) org(name string) *orgRoster {
	o := r.orgs[name]
	if o == nil {
		o = &orgRoster{agents: make(map[string]int), pace: rate.NewLimiter(exchangesPerSecond, exchangesAtOnce)}
		r.orgs[name] = o
	}
	return o
}

// admit says whether one more set of credentials may be issued now.
func (r *roster) admit(one *Issuance, now time.Time) error {
	name := one.Ground.Organization
	org := r.org(name)
	if !org.pace.AllowN(now, 1) {
		return tooMany("organization "+name+" has reached its limit of "+strconv.Itoa(exchangesPerSecond)+" exchanges per second",
			"wait; if this goes on, something in the organization asks for credentials again and again", time.Second)
	}
	if org.issuances >= maxIssuedPerOrg {
		return tooMany("organization "+name+" has reached its limit of "+strconv.Itoa(maxIssuedPerOrg)+" sets of credentials that have not expired",
			"something in the organization asks for credentials again and again: find it in the hub's log, and revoke its token", time.Minute)
	}
	if r.grounds[one.Ground] >= maxIssuedPerGround {
		return tooMany(fmt.Sprintf("the %s has reached its limit of %d sets of credentials that have not expired", one.Ground, maxIssuedPerGround),
			"something asks for credentials again and again with it: find it in the hub's log, or use several tokens", time.Minute)
	}
	if agent := agentOf(one); agent != "" && org.agents[agent] == 0 {
		key := limit.Key{Level: limit.Organization, Organization: name}
		if refusal := r.book.Admit(key, limit.Agents, len(org.agents)); refusal != nil {
			return tooMany(refusal.Error(), refusal.Hint, time.Minute)
		}
	}
	return nil
}

func tooMany(detail, hint string, again time.Duration) error {
	return &api.Problem{
		Status: http.StatusTooManyRequests, Code: wire.CodeOverloaded.String(), Detail: detail, Hint: hint, RetryAfter: again,
	}
}

// agentOf returns the ID of the agent that an issuance was issued to, "" for others.
func agentOf(one *Issuance) string {
	u, err := url.Parse(one.ID)
	if err != nil {
		return ""
	}
	id, err := identity.ParseID(u)
	if err != nil || id.Role != identity.RoleAgent {
		return ""
	}
	return id.Name
}

// enter counts an issuance in.
func (r *roster) enter(one *Issuance) {
	r.org(one.Ground.Organization).issuances++
	if !one.Revoked {
		r.stand(one, 1)
	}
}

// leave counts an issuance out that is forgotten.
func (r *roster) leave(one *Issuance) {
	if !one.Revoked {
		r.stand(one, -1)
	}
	org := r.org(one.Ground.Organization)
	if org.issuances--; org.issuances == 0 && org.pace.Tokens() >= exchangesAtOnce {
		delete(r.orgs, one.Ground.Organization)
	}
}

// stand changes the number of issuances that stand: that are neither revoked nor
// forgotten.
func (r *roster) stand(one *Issuance, n int) {
	if r.grounds[one.Ground] += n; r.grounds[one.Ground] == 0 {
		delete(r.grounds, one.Ground)
	}
	if agent := agentOf(one); agent != "" {
		agents := r.org(one.Ground.Organization).agents
		if agents[agent] += n; agents[agent] == 0 {
			delete(agents, agent)
		}
	}
}

// enlist counts an issuance in that is about to be issued and has claimed its bus key,
// if it may be.
func (i *Issued) enlist(one *Issuance) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.roster.admit(one, i.now()); err != nil {
		i.release(one.BusKey)
		return err
	}
	i.roster.enter(one)
	return nil
}

// delist undoes enlist and the claim.
func (i *Issued) delist(one *Issuance) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.release(one.BusKey)
	i.roster.leave(one)
}

// Limit makes the agents of organizations keep to a book.
func (i *Issued) Limit(b *limit.Book) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.roster.book = b
}

// Agents returns how many agents of an organization have credentials.
func (i *Issued) Agents(org string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	if o := i.roster.orgs[org]; o != nil {
		return len(o.agents)
	}
	return 0
}
