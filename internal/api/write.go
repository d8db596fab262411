package api

import (
	"encoding/json"
	"net/http"
	"strconv"
)

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
