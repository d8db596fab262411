package harness

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Machine is a Debian machine that systemd has started: this machine's files below a layer that
// takes all changes, and namespaces of its own. Nothing that happens in it reaches this one.
type Machine struct {
	// Share is a folder of this machine, which is /mnt in the other.
	Share string

	unshare *exec.Cmd
	console bytes.Buffer
}

// StartMachine starts a machine, and ends it at the test's end. It needs root, as the machine's
// systemd has to mount and to make cgroups.
func StartMachine(t testing.TB) *Machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("a machine with systemd can only be started by root")
	}
	Need(t, "systemd", "systemd-analyze")
	Need(t, "iproute2", "ip")
	m := &Machine{Share: t.TempDir()}
	dir := t.TempDir()
	group := "postern-e2e-" + strconv.Itoa(os.Getpid()) + "-" + filepath.Base(filepath.Dir(dir))
	boot := filepath.Join(dir, "boot")
	if err := os.WriteFile(boot, []byte(bootScript), 0o700); err != nil {
		t.Fatal(err)
	}
	m.unshare = exec.Command("bash", "-c", groupScript, "start", group, boot, dir, m.Share)
	m.unshare.Env = BaseEnv(dir)
	m.unshare.Stdout, m.unshare.Stderr = &m.console, &m.console
	m.unshare.WaitDelay = time.Second
	if err := m.unshare.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = m.unshare.Process.Kill() // and with it, by the kernel, all that runs in the machine
		_ = m.unshare.Wait()
		Eventually(t, 10*time.Second, "the machine's cgroups are gone", func() error { return removeGroups(group) })
	})
	Eventually(t, 60*time.Second, "systemd answers", func() error {
		if m.unshare.ProcessState != nil {
			return Permanent(fmt.Errorf("it ended:\n%s", m.console.String()))
		}
		out, err := m.Try("systemctl show --property=Version")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	return m
}

// Run runs a script of bash in the machine, in /mnt, as root, and returns what it printed. The
// test fails if the script does.
func (m *Machine) Run(t testing.TB, script string) string {
	t.Helper()
	out, err := m.Try(script)
	if err != nil {
		journal, _ := m.Try("journalctl --no-pager -n 60")
		t.Fatalf("%v\n%s\nin the machine's journal:\n%s", err, out, journal)
	}
	return out
}

// Try is Run for a script that may fail.
func (m *Machine) Try(script string) (string, error) {
	pid, err := m.init()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "--target", pid, "--all",
		"env", "-i", "-C", "/mnt", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C", "DEBIAN_FRONTEND=noninteractive",
		"bash", "-euo", "pipefail", "-c", script)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// init returns the process that is the machine's first.
func (m *Machine) init() (string, error) {
	pid := strconv.Itoa(m.unshare.Process.Pid)
	children, err := os.ReadFile(filepath.Join("/proc", pid, "task", pid, "children"))
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(children)), " ")
	if name, err := os.ReadFile(filepath.Join("/proc", first, "comm")); err != nil || strings.TrimSpace(string(name)) != "systemd" {
		return "", fmt.Errorf("the machine has not come to systemd yet: %s", name)
	}
	return first, nil
}

// removeGroups removes the cgroups of a machine that has ended, the deepest first.
func removeGroups(group string) error {
	for _, root := range []string{"/sys/fs/cgroup/systemd", "/sys/fs/cgroup"} {
		top := filepath.Join(root, group)
		if _, err := os.Stat(top); err != nil {
			continue
		}
		if out, err := exec.Command("find", top, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	return nil
}

// groupScript goes into a cgroup of the machine's own, and from there into namespaces: GROUP BOOT DIR SHARE.
const groupScript = `set -eu
root=/sys/fs/cgroup
[ -e $root/cgroup.controllers ] || root=/sys/fs/cgroup/systemd
mkdir "$root/$1"
echo $$ >"$root/$1/cgroup.procs"
exec unshare --pid --mount --net --uts --ipc --cgroup --fork --kill-child bash "$2" "$3" "$4"
`

// bootScript makes the machine's file system, with nothing of this machine that could be written,
// and becomes its systemd: DIR SHARE. /proc/sys is read-only and the right to set the clock and to
// load modules is dropped, since the kernel is the one of this machine.
const bootScript = `set -eu
dir=$1 share=$2 root=$1/root
mount --make-rprivate /
mkdir -p "$root" "$dir/layer"
mount -t tmpfs tmpfs "$dir/layer"
mkdir "$dir/layer/upper" "$dir/layer/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/layer/upper,workdir=$dir/layer/work" "$root"
for each in run tmp dev; do mount -t tmpfs tmpfs "$root/$each"; done
for each in null zero full random urandom tty; do
	touch "$root/dev/$each"
	mount --bind "/dev/$each" "$root/dev/$each"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
	mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
	mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
	mkdir "$root/sys/fs/cgroup/systemd"
	mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
fi
mount --bind "$share" "$root/mnt"
rm -rf "$root/etc/systemd/system"
mkdir "$root/etc/systemd/system"
printf '[Unit]\nDescription=A machine for tests\n' >"$root/etc/systemd/system/machine.target"
ip link set lo up
mkdir -p "$root/old"
cd "$root"
pivot_root . old
umount -l /old
export container=other
exec setpriv --bounding-set=-sys_module,-sys_time,-sys_boot,-sys_rawio \
	/lib/systemd/systemd --system --unit=machine.target --log-target=journal --show-status=no
`
