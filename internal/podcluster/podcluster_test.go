package podcluster_test

import (
	"errors"
	"maps"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"postern.dev/postern/internal/podcluster"
	"postern.dev/postern/internal/podcluster/podtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestSecret makes, reads and changes one, and is told when somebody else was quicker.
func TestSecret(t *testing.T) {
	api := podtest.New(t)
	c := api.Cluster
	namespace, err := c.Namespace()
	if err != nil || namespace != podtest.Namespace {
		t.Fatal(namespace, err)
	}
	if _, err := c.Secret(t.Context(), namespace, "keys"); !errors.Is(err, podcluster.ErrNotFound) {
		t.Errorf("before it is there: %v", err)
	}
	mine := podcluster.Secret{Namespace: namespace, Name: "keys", Data: map[string][]byte{"a": []byte("1")}}
	first, err := c.PutSecret(t.Context(), mine)
	if err != nil || first.Version == "" || string(first.Data["a"]) != "1" {
		t.Fatal(first, err)
	}
	if _, err := c.PutSecret(t.Context(), mine); !errors.Is(err, podcluster.ErrConflict) {
		t.Errorf("made twice: %v", err)
	}
	// What others have in it stays.
	data := api.Data("keys")
	data["theirs"] = []byte("x")
	api.Put("keys", data)
	first.Data = map[string][]byte{"a": []byte("2")}
	if _, err := c.PutSecret(t.Context(), first); !errors.Is(err, podcluster.ErrConflict) {
		t.Errorf("changed meanwhile: %v", err)
	}
	now, err := c.Secret(t.Context(), namespace, "keys")
	if err != nil {
		t.Fatal(err)
	}
	now.Data = map[string][]byte{"a": []byte("2")}
	if _, err := c.PutSecret(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if got := api.Data("keys"); !maps.EqualFunc(got, map[string][]byte{"a": []byte("2"), "theirs": []byte("x")}, func(a, b []byte) bool { return string(a) == string(b) }) {
		t.Errorf("it holds %q", got)
	}
	api.Refuse(http.StatusForbidden)
	if _, err := c.Secret(t.Context(), namespace, "keys"); !errors.Is(err, podcluster.ErrForbidden) || !strings.Contains(err.Error(), "Secret postern-system/keys") {
		t.Errorf("forbidden: %v", err)
	}
	api.Refuse(http.StatusInternalServerError)
	if _, err := c.Secret(t.Context(), namespace, "keys"); err == nil || !strings.Contains(err.Error(), "500") {
		t.Errorf("broken: %v", err)
	}
}

// TestConfigMap is told what goes wrong as of a Secret. The hub's tests read one.
func TestConfigMap(t *testing.T) {
	api := podtest.New(t)
	for status, want := range map[int]error{http.StatusNotFound: podcluster.ErrNotFound, http.StatusForbidden: podcluster.ErrForbidden} {
		api.Refuse(status)
		_, err := api.Cluster.ConfigMap(t.Context(), podtest.Namespace, "ca", "ca.crt")
		if !errors.Is(err, want) || !strings.Contains(err.Error(), "ConfigMap postern-system/ca: ") {
			t.Errorf("%d: %v", status, err)
		}
	}
}

func TestNoPod(t *testing.T) {
	c := podcluster.New(nil, t.TempDir())
	if c.There() {
		t.Error("it is one")
	}
	if _, err := c.Secret(t.Context(), "a", "b"); !errors.Is(err, podcluster.ErrNoPod) {
		t.Error(err)
	}
	var none *podcluster.Cluster
	none.Close()
	if none.There() {
		t.Error("none is one")
	}
}
