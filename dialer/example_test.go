package dialer_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"postern.dev/postern/dialer"
)

// A program enrols with a robot's token and dials a server behind an agent.
func Example() {
	office, err := begin() // a hub, and an agent with a server behind it
	if err != nil {
		fmt.Println(err)
		return
	}
	defer office.End()
	ctx := context.Background()

	d, err := dialer.New(ctx, dialer.Options{
		ConnectURL: office.ConnectURL, CAFile: office.CAFile, // tls://hub.example.org, ca.crt
		Token: office.Token, // or TokenFile
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()

	conn, err := d.Dial(ctx, "office/tcp:"+office.Echo)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	fmt.Fprintln(conn, "hello")
	line, err := bufio.NewReader(conn).ReadString('\n')
	fmt.Print(line, err)
	// Output:
	// hello
	// <nil>
}

// A client of HTTP gets its connections through an agent.
func ExampleDialer_Transport() {
	office, err := begin()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer office.End()
	d, err := dialer.New(context.Background(), office.Options)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()

	transport := d.Transport("office")
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	res, err := client.Get(office.Page.URL)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	fmt.Println(res.Status, len(body) > 0, err)
	// Output: 200 OK true <nil>
}

// An error tells where it failed, what, and what to do.
func ExampleError() {
	office, err := begin()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer office.End()
	d, err := dialer.New(context.Background(), office.Options)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()

	_, err = d.Dial(context.Background(), "office/tcp:192.0.2.7:5432")
	if failure, ok := errors.AsType[*dialer.Error](err); ok {
		fmt.Println(failure.Leg, failure.Code)
	}
	// Output: policy denied
}
