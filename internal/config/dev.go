package config

// Dev is the settings of `postern dev`, which makes up everything else.
type Dev struct {
	HTTP string // where the demo's proxy listens
	Log  Log
}

// DefaultDev returns dev's settings before anything is configured. It logs
// little, since what it prints is to be read.
func DefaultDev() Dev {
	return Dev{HTTP: "127.0.0.1:0", Log: Log{Format: "auto", Level: "warn"}}
}

func (d *Dev) fields() []*Field {
	return append([]*Field{
		text("http", "ADDR", &d.HTTP, "address of the proxy; port 0 is a free one"),
	}, d.Log.fields()...)
}

func (d *Dev) fromFile() bool { return false }

func (d *Dev) complete(*Set, Environment) {}

func (d *Dev) check(c *checker) {
	if c.listenAddr("http", d.HTTP) && !Loopback(d.HTTP) {
		c.fail("http", "listen on 127.0.0.1 or [::1]", "%q can be reached from other machines, and the demo has no passwords", d.HTTP)
	}
	d.Log.check(c)
}
