// Package config holds the typed settings of every role of Postern (hub, agent,
// proxy, and the client commands) and loads them.
//
// A setting has one name, and everything else follows from it:
//
//	flag         --connect-url
//	environment  POSTERN_CONNECT_URL
//	YAML key     connectUrl
//
// A flag wins over the environment, the environment over the file named by
// --config or POSTERN_CONFIG, the file over the default. The file is strict: an
// unknown key, a key given twice and a value of the wrong type are refused with
// their line. All that is wrong with a configuration is reported at once, each
// problem with the setting's name, where the value came from and how to mend
// it (SettingError).
//
// Secrets are never taken from a flag, because every user of a machine can read
// the arguments of its processes: they come from a file that a setting names, or
// from the environment. They are of type Secret, which prints as asterisks.
//
// Typical use, with any flag library that knows an interface of the shape of
// flag.Value:
//
//	settings := config.DefaultAgent()
//	set := config.Bind(&settings)
//	for _, f := range set.Fields() {
//		if f.OnCommandLine() {
//			flags.Var(f, f.Name, f.Usage)
//		}
//	}
//	… parse the flags …
//	err := set.Load(config.System())
//
// Nothing in this package keeps global state; a Set is used by one goroutine.
package config
