package api

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"

	"postern.dev/postern/internal/wire"
)

// ReadJSON reads a request's body strictly: of TypeJSON, without members that into does not know,
// and with nothing after it. Whoever serves bounds the body with http.MaxBytesReader. Errors are
// *Problem or *wire.Failure.
func ReadJSON(r *http.Request, into any) error {
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind != TypeJSON {
		return &Problem{Status: http.StatusUnsupportedMediaType, Code: wire.CodeBadRequest.String(), Detail: "the body is not " + TypeJSON}
	}
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return BodyError(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return wire.Fail(wire.LegHub, wire.CodeBadRequest, "the body has something after its JSON")
	}
	return nil
}

// BodyError words why a request's body could not be read.
func BodyError(err error) error {
	if long, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &Problem{
			Status: http.StatusRequestEntityTooLarge, Code: wire.CodeBadRequest.String(),
			Detail: "the body is longer than " + strconv.FormatInt(long.Limit, 10) + " bytes",
		}
	}
	return wire.Fail(wire.LegHub, wire.CodeBadRequest, "the body cannot be read: %s", err).WithCause(err)
}

// WriteJSON answers a request with a status and a body of a media type such as TypeJSON or
// TypeProblem. Bodies are of this package's types, which always encode. That the client is gone is
// nobody's to know.
func WriteJSON(w http.ResponseWriter, status int, kind string, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		http.Error(w, "encode answer", http.StatusInternalServerError) // our own types always encode
		return
	}
	b = append(b, '\n')
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b) // the client is gone: there is nobody to tell
}

// WriteProblem answers a request with a problem, and completes what is empty in it.
func WriteProblem(w http.ResponseWriter, p *Problem) {
	complete := *p
	complete.Title = http.StatusText(p.Status)
	if complete.Leg == "" {
		complete.Leg = wire.LegHub.String()
	}
	WriteJSON(w, p.Status, TypeProblem, &complete)
}
