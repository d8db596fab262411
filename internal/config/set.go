package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// configName is the name of the setting that names the YAML file.
const configName = "config"

// maxFile bounds the size of a configuration file, in bytes.
const maxFile = 1 << 20

// Settings is what a Set binds: *Hub, *Agent, *Proxy or *Client.
type Settings interface {
	fields() []*Field
	complete(*Set, Environment)
	check(*checker)
	fromFile() bool // whether a YAML file may hold these settings
}

// Environment is what a configuration is loaded from, beside the flags.
type Environment struct {
	LookupEnv func(key string) (string, bool)
	ReadFile  func(name string) ([]byte, error)
	Hostname  func() (string, error)

	// Context returns the values of settings that a person's context has, by the
	// name of the setting, with "hub" and "context" among them. An empty name means
	// the current context; without one it returns nil. A nil function means that
	// there are no contexts.
	Context func(name string) (map[string]string, error)
}

// System returns the environment of this process.
func System() Environment {
	return Environment{LookupEnv: os.LookupEnv, ReadFile: os.ReadFile, Hostname: os.Hostname}
}

// Set is the settings of one role, bound to the places that give them values.
type Set struct {
	settings Settings
	list     []*Field
	byName   map[string]*Field
	file     *Field // nil if these settings are not kept in a file
	path     string
	checker  *checker // of the Load that is under way
}

// Bind makes the Set of some settings. What the settings hold now are the defaults.
func Bind(s Settings) *Set {
	set := &Set{settings: s, list: s.fields(), byName: make(map[string]*Field)}
	if s.fromFile() {
		set.file = text(configName, "FILE", &set.path, "YAML file with settings; flags and environment variables win over it")
		set.list = append(set.list, set.file)
	}
	for _, f := range set.list {
		f.initial = f.String()
		if f.shape == shapeBool && f.initial == "false" {
			f.initial = ""
		}
		set.byName[f.Name] = f
	}
	return set
}

// Fields returns the settings in the order in which they are documented.
func (s *Set) Fields() []*Field { return s.list }

// Field returns the setting of that name, or nil.
func (s *Set) Field(name string) *Field { return s.byName[name] }

// Load fills in from the environment and the file what no flag has set,
// completes what is derived, and checks everything. It returns all problems
// joined, each a *SettingError.
func (s *Set) Load(env Environment) error {
	errs := s.loadEnv(env)
	if s.path != "" {
		errs = append(errs, s.loadFile(env)...)
	}
	if len(errs) > 0 {
		// A value that could not be read is missing now: checking further would
		// only report the same mistake a second time in other words.
		return errors.Join(errs...)
	}
	if err := s.loadContext(env); err != nil {
		return err
	}
	c := &checker{set: s}
	s.checker = c
	s.settings.complete(s, env)
	if len(c.errs) > 0 {
		return errors.Join(c.errs...) // as above
	}
	s.settings.check(c)
	return errors.Join(c.errs...)
}

// loadEnv takes from the environment what no flag has set.
func (s *Set) loadEnv(env Environment) (errs []error) {
	for _, f := range s.list {
		if f.origin.Source == SourceFlag || f.Env() == "" {
			continue
		}
		for _, name := range append([]string{f.Env()}, f.Aliases...) {
			v, ok := env.LookupEnv(name)
			if !ok || v == "" { // an empty variable is how shells and charts say "not set"
				continue
			}
			from := Origin{SourceEnv, name}
			if err := f.store(v, from); err != nil {
				errs = append(errs, &SettingError{Setting: f.Name, Origin: from, Problem: err.Error()})
			}
			break
		}
	}
	return errs
}

// loadFile takes from the YAML file what neither flag nor environment has set.
func (s *Set) loadFile(env Environment) []error {
	data, err := env.ReadFile(s.path)
	if err != nil {
		if pe, ok := errors.AsType[*fs.PathError](err); ok {
			err = pe.Err
		}
		return []error{&SettingError{Setting: configName, Origin: s.file.origin,
			Problem: fmt.Sprintf("cannot read %s: %v", s.path, err), Mend: "name a YAML file that this user may read"}}
	}
	if len(data) > maxFile {
		return []error{&SettingError{Setting: configName, Origin: s.file.origin,
			Problem: fmt.Sprintf("%s is %d bytes long; at most %d are allowed", s.path, len(data), maxFile)}}
	}
	return s.decode(s.path, data)
}
