package config

import (
	"errors"
	"io/fs"
	"path/filepath"

	"postern.dev/postern/internal/joinstring"
)

// Joining is how an agent joins an organization for the first time, and where it
// keeps what came of it.
type Joining struct {
	JoinFile   string // file with a join string; "-" for standard input
	JoinString Secret // the join string itself: from the environment, or read from JoinFile
	State      string // directory with the agent's key, and what the join string said
}

func (j *Joining) joinFields() []*Field {
	return []*Field{
		text("join-file", "FILE", &j.JoinFile, "join string, as the hub's administrator makes it, - for standard input; the agent makes its own key with it, "+
			"and needs it only once"),
		hidden("join", &j.JoinString, "the join string itself, where a file cannot be had"),
		text("state", "DIR", &j.State, "directory for the key of an agent that joins with a join string; replicas may share it"),
	}
}

// given reports whether there is a join string.
func (j *Joining) given() bool { return j.JoinFile != "" || j.JoinString != "" }

// completeJoin takes what is not set otherwise from the join string, or from the
// state directory once the agent has joined.
func (p *Party) completeJoin(s *Set, env Environment) {
	if proofs := p.proofs(); len(proofs) > 0 && proofs[0].setting != "join" {
		return // it does not need to join
	}
	if p.State == "" {
		if p.given() {
			s.checker.fail("state", "give --state DIR: the agent's key is kept there, and is needed from then on",
				"is not set, and there is a join string")
		}
		return
	}
	member, joined := p.readMembership(s, env)
	str, parsed := p.readJoin(s, env, joined)
	from := Origin{SourceFile, filepath.Join(p.State, joinstring.MembershipFile)}
	authority := filepath.Join(p.State, joinstring.AuthorityFile)
	switch {
	case joined && parsed && (member.Organization != str.Organization || member.Agent != str.Agent):
		s.checker.fail("state", "give each agent a directory of its own",
			"%s is that of agent %s of organization %s, and the join string is for agent %s of organization %s",
			p.State, member.Agent, member.Organization, str.Agent, str.Organization)
		return
	case parsed && (!joined || member.JoinID != str.ID):
		member = str.Membership("", str.Expires)
		from.Where = "the join string"
	case !joined:
		return
	case member.CAPin != "" && p.CAFile == "" && p.CAPin == "":
		// The hub's authority may have changed since: the agent has kept the newest.
		if b, err := env.ReadFile(authority); err == nil && len(b) > 0 {
			s.adopt("ca-file", authority, from)
		}
	}
	s.adopt("connect-url", member.ConnectURL, from)
	if p.CAFile == "" {
		s.adopt("ca-pin", member.CAPin, from)
	}
	p.same(s, "organization", member.Organization, from)
	p.same(s, "agent-id", member.Agent, from)
}

// adopt sets a setting that nobody has given.
func (s *Set) adopt(name, value string, from Origin) {
	if f := s.Field(name); f.origin.Source == SourceDefault && value != "" {
		_ = f.store(value, from) // texts are taken as they are
	}
}

// same is adopt for a setting that cannot be chosen otherwise.
func (p *Party) same(s *Set, name, value string, from Origin) {
	s.adopt(name, value, from)
	if f := s.Field(name); f.String() != value {
		s.checker.fail(name, "leave it out, or take a join string for it", "%q is not what %s says: %q", f.String(), from.Where, value)
	}
}

func (p *Party) readMembership(s *Set, env Environment) (joinstring.Membership, bool) {
	name := filepath.Join(p.State, joinstring.MembershipFile)
	b, err := env.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return joinstring.Membership{}, false
	}
	var m joinstring.Membership
	if err == nil {
		m, err = joinstring.ParseMembership(b)
	}
	if err != nil {
		s.checker.fail("state", "", "%s cannot be used: %v", name, plainFile(err))
	}
	return m, err == nil
}

// readJoin reads the join string into p.JoinString. A file that is gone is no problem
// once the agent has joined.
func (p *Party) readJoin(s *Set, env Environment, joined bool) (joinstring.String, bool) {
	setting := "join"
	if p.JoinFile != "" {
		setting = "join-file"
		b, err := env.ReadFile(p.JoinFile)
		if joined && errors.Is(err, fs.ErrNotExist) {
			return joinstring.String{}, false
		}
		if err != nil {
			s.checker.fail(setting, "make a join string with: postern agent new AGENT -f "+p.JoinFile, "%s cannot be read: %v", p.JoinFile, plainFile(err))
			return joinstring.String{}, false
		}
		_ = s.Field("join").store(string(b), Origin{SourceFile, p.JoinFile})
	}
	if p.JoinString == "" {
		return joinstring.String{}, false
	}
	str, err := joinstring.Parse(p.JoinString.Reveal())
	if err != nil {
		s.checker.fail(setting, "copy it whole, from "+joinstring.Prefix+" to its end, or make a new one with: postern agent new AGENT", "the join string cannot be used: %v", err)
		return joinstring.String{}, false
	}
	return str, true
}

// plainFile returns the system's word of a file error, without operation and path.
func plainFile(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
