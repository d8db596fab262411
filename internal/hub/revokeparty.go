package hub

import (
	"context"
	"errors"
	"net/url"
	"sync"

	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
)

// partyName is an agent or a proxy by name: all its replicas.
type partyName struct {
	organization string
	role         identity.Role
	name         string
}

// String names the party as records do.
func (p partyName) String() string { return string(p.role) + ":" + p.name }

// partyNameOf returns whom a SPIFFE ID names; the zero value if it names no party.
func partyNameOf(id string) partyName {
	u, err := url.Parse(id)
	if err != nil {
		return partyName{}
	}
	parsed, err := identity.ParseID(u)
	if err != nil || parsed.Role == identity.RoleHub {
		return partyName{}
	}
	return partyName{parsed.Organization, parsed.Role, parsed.Name}
}

// RevokeParty takes back all that was issued to an agent or proxy, on whatever ground, and
// returns how many connections it cut. Note the revocation in the registry first: what is
// issued meanwhile is seen there.
func (i *Issued) RevokeParty(ctx context.Context, org string, role identity.Role, name string) (cut int) {
	return i.revokeParties(ctx, map[partyName]bool{{org, role, name}: true})
}

func (i *Issued) revokeParties(ctx context.Context, gone map[partyName]bool) (cut int) {
	if len(gone) == 0 {
		return 0
	}
	revoked, cut := i.takeBack(func(one *Issuance) bool { return gone[one.party] })
	told := make(map[partyName]bool)
	for _, one := range revoked {
		if !told[one.party] {
			told[one.party] = true
			i.tell(one.party.organization, one.party.String(), cut)
		}
		i.write(ctx, one)
	}
	return cut
}

// enforceParties takes back what parties have that are revoked by name: the process ended
// before that was done, or the registry was restored from a backup.
func (i *Issued) enforceParties(ctx context.Context) error {
	orgs, err := i.registry.Organizations(ctx)
	if err != nil {
		return err
	}
	gone := make(map[partyName]bool)
	for _, org := range orgs {
		revocations, err := i.registry.Revocations(ctx, org.Name)
		if err != nil {
			return err
		}
		for _, v := range revocations {
			gone[partyName{v.Organization, v.Role, v.Name}] = true
		}
	}
	i.revokeParties(ctx, gone)
	return nil
}

// checkIssued says whether an issuance may be given out that is in i already: nothing that
// it rests on was revoked meanwhile. If something was, it is taken back.
func (i *Issued) checkIssued(ctx context.Context, one *Issuance) error {
	err := i.registry.CheckGround(ctx, one.Ground)
	if errors.Is(err, registry.ErrRevoked) {
		return errors.Join(err, i.Enforce(ctx, one.Ground))
	}
	if err != nil {
		return err
	}
	err = i.registry.CheckParty(ctx, one.party.organization, one.party.role, one.party.name)
	if _, revoked := errors.AsType[*registry.RevokedError](err); revoked {
		i.revokeParties(ctx, map[partyName]bool{one.party: true})
	}
	return err
}

// heldRecords keeps what is found to be revoked while a hub starts, until there is an audit
// log to tell.
type heldRecords struct {
	mu  sync.Mutex
	all []audit.Record
}

// Record implements audit.Recorder.
func (h *heldRecords) Record(r audit.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.What = "found revoked at the start"
	h.all = append(h.all, r)
}

// hand gives to a recorder what was held.
func (h *heldRecords) hand(to audit.Recorder) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.all {
		to.Record(r)
	}
	h.all = nil
}
