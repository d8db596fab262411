package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pause waits to be ended: it holds the namespaces of a pod.
func pause([]string) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGINT, unix.SIGTERM)
	<-stop
	return nil
}

// reap is the first process of a process namespace: it waits for every orphan, for ever.
func reap([]string) error {
	child := make(chan os.Signal, 1)
	signal.Notify(child, unix.SIGCHLD)
	for range child {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if pid <= 0 && !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
	return nil
}

// serve answers HTTP on an address and says so.
func serve(args []string) error {
	if len(args) != 1 {
		return errors.New("serve needs an address")
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	fmt.Println("serving on", args[0])
	return http.ListenAndServe(args[0], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println(r.Method, r.URL.Path)
		fmt.Fprintf(w, "hello from %s at %s\n", host, r.URL.Path)
	}))
}

// tick prints a numbered line at every interval.
func tick(args []string) error {
	every, err := duration(args)
	if err != nil {
		return err
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for i := 0; ; i++ {
		fmt.Println("tick", i)
		<-ticker.C
	}
}

func sleep(args []string) error {
	d, err := duration(args)
	if err != nil {
		return err
	}
	time.Sleep(d)
	return nil
}

func duration(args []string) (time.Duration, error) {
	if len(args) != 1 {
		return 0, errors.New("one duration is needed, such as 1s")
	}
	return time.ParseDuration(args[0])
}

func echo(args []string) error {
	_, err := fmt.Println(strings.Join(args, " "))
	return err
}

// linger is cat that stays for a moment after the end. The container runtime lets go of what is
// attached to a program when that ends, and may then not have sent all of its output.
func linger([]string) error {
	if err := cat(nil); err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	return nil
}

// cat copies standard input, or files, to standard output.
func cat(args []string) error {
	if len(args) == 0 {
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	}
	for _, name := range args {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func env([]string) error {
	for _, kv := range os.Environ() {
		fmt.Println(kv)
	}
	return nil
}

func exit(args []string) error {
	if len(args) != 1 {
		return errors.New("exit needs a number")
	}
	code, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	if code == 0 {
		return nil
	}
	return exitError(code)
}

// gen writes N bytes that look random and are the same every time, to a file or standard output.
func gen(args []string) error {
	if len(args) != 1 && len(args) != 2 {
		return errors.New("gen needs a number of bytes, and may have a file")
	}
	n, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return err
	}
	out := os.Stdout
	if len(args) == 2 {
		if out, err = os.Create(args[1]); err != nil {
			return err
		}
	}
	if _, err := io.CopyN(out, rand.NewChaCha8([32]byte{}), n); err != nil {
		return err
	}
	return out.Close()
}

// sha256sum prints the digest of a file or of standard input.
func sha256sum(args []string) error {
	in := os.Stdin
	if len(args) == 1 {
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	h := sha256.New()
	if _, err := io.Copy(h, in); err != nil {
		return err
	}
	_, err := fmt.Printf("%x\n", h.Sum(nil))
	return err
}

// test answers the one question that kubectl cp asks: test -d PATH.
func test(args []string) error {
	if len(args) != 2 || args[0] != "-d" {
		return errors.New("only test -d PATH is known")
	}
	if info, err := os.Stat(args[1]); err != nil || !info.IsDir() {
		return exitError(1)
	}
	return nil
}

// tty tells the size of the terminal on standard input, at first and whenever it changes, and
// answers every line until the line "bye" or the end. A size of nothing is one not known yet.
func tty([]string) error {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	size := func() error {
		size, err := unix.IoctlGetWinsize(int(os.Stdin.Fd()), unix.TIOCGWINSZ)
		if err != nil {
			return fmt.Errorf("standard input is no terminal: %w", err)
		}
		if size.Row > 0 {
			fmt.Printf("tty %d rows %d columns\n", size.Row, size.Col)
		}
		return nil
	}
	if err := size(); err != nil {
		return err
	}
	words := make(chan string)
	go func() { // ends with the program
		defer close(words)
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			words <- in.Text()
		}
	}()
	for {
		select {
		case <-changed:
			if err := size(); err != nil {
				return err
			}
		case word, ok := <-words:
			if !ok || word == "bye" {
				return nil
			}
			fmt.Println("got", word)
		}
	}
}
