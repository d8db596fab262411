package api

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net/url"

	"postern.dev/postern/internal/wire"
)

// maxAuditLine bounds a line of an audit log, in bytes.
const maxAuditLine = 16 << 10

// ownAudit stands for the hub's own audit log, where an organization is wanted.
const ownAudit = ""

func auditPath(org string) string {
	if org == ownAudit {
		return PathAudit
	}
	return organizationPath(org) + "/audit"
}

// Audit calls each with the lines of an organization's audit log that a filter wants,
// in order; the empty organization means the hub's own log. With follow=true it goes
// on until ctx ends, and returns nil then. An error of each ends it. A line is valid
// until each returns.
func (c *Client) Audit(ctx context.Context, org string, filter url.Values, each func(line []byte) error) error {
	body, err := c.stream(ctx, auditPath(org)+"?"+filter.Encode())
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxAuditLine+1)
	for lines.Scan() {
		if line := bytes.TrimSpace(lines.Bytes()); len(line) > 0 { // an empty one is a sign of life
			if err := each(line); err != nil {
				return err
			}
		}
	}
	switch {
	case lines.Err() == nil || ctx.Err() != nil:
		return nil
	case errors.Is(lines.Err(), bufio.ErrTooLong):
		return wire.Fail(wire.LegHub, wire.CodeProtocol, "a line of the audit log is longer than %d bytes", maxAuditLine)
	default:
		return wire.Fail(wire.LegHub, wire.CodeLost, "the hub broke off in the midst of the audit log: %s", lines.Err()).WithCause(lines.Err()).
			WithHint("ask again; the hub may be shutting down, or you may not read the log any more")
	}
}

// AuditHead returns where an organization's audit log ends; the empty organization
// means the hub's own log.
func (c *Client) AuditHead(ctx context.Context, org string) (AuditHead, error) {
	return get[AuditHead](ctx, c, auditPath(org)+"/head", nil)
}
