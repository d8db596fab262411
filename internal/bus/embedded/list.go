package embedded

import (
	"context"
	"errors"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// How NATS keeps a bucket: a stream, a subject for each key, and a header in what is left of
// a value that was deleted. See ADR-8 of NATS, "JetStream based Key-Value Stores".
const (
	streamPrefix    = "KV_"
	subjectPrefix   = "$KV."
	headerOperation = "KV-Operation"
	headerMarker    = "Nats-Marker-Reason"
)

// Bounds of the two ways to list a bucket.
const (
	fewKeys    = 16 // that are read one after the other sooner than a watch begins
	quietTries = 3  // watches in the hope that nothing is written meanwhile
)

// List implements registry.Store.
//
// Keys can be read one after the other, which leaves out none. A watch gives many of them
// sooner, but may leave out one whose value is replaced while it begins: what it gives counts
// if nothing was written meanwhile.
func (k *KV) List(ctx context.Context, prefix string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	filter := ">"
	if strings.HasSuffix(prefix, ".") {
		filter = prefix + ">"
	}
	found, all, err := k.walk(ctx, filter, fewKeys)
	if err == nil && !all {
		found, all, err = k.watch(ctx, filter)
	}
	if err == nil && !all {
		found, _, err = k.walk(ctx, filter, math.MaxInt)
	}
	if err != nil {
		return nil, storeError("list", prefix, err)
	}
	return slices.DeleteFunc(found, func(key string) bool { return !strings.HasPrefix(key, prefix) }), nil
}

// walk returns the keys that match a filter, and whether those are all: it takes so many steps
// at most. It reads values in the order in which they were written, and one that is replaced
// meanwhile is written behind all others, so it cannot be passed by.
func (k *KV) walk(ctx context.Context, filter string, steps int) (found []string, all bool, err error) {
	subjects := subjectPrefix + k.kv.Bucket() + "."
	keys := make(map[string]bool)
	next := uint64(1)
	for range steps {
		m, err := k.stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject(subjects+filter))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return slices.Collect(maps.Keys(keys)), true, nil
		}
		if err != nil {
			return nil, false, err
		}
		key := strings.TrimPrefix(m.Subject, subjects)
		if m.Header.Get(headerOperation) != "" || m.Header.Get(headerMarker) != "" {
			delete(keys, key)
		} else {
			keys[key] = true
		}
		next = m.Sequence + 1
	}
	return nil, false, nil
}

// watch returns the keys that match a filter, and whether those are all: whether nothing was
// written while it looked.
func (k *KV) watch(ctx context.Context, filter string) (found []string, all bool, err error) {
	before, err := k.written(ctx)
	for range quietTries {
		if err == nil {
			found, err = k.seen(ctx, filter)
		}
		var after uint64
		if err == nil {
			after, err = k.written(ctx)
		}
		if err != nil || after == before {
			return found, err == nil, err
		}
		before = after
	}
	return nil, false, nil
}

// written returns how much was written into the bucket ever.
func (k *KV) written(ctx context.Context) (uint64, error) {
	info, err := k.stream.Info(ctx)
	if err != nil {
		return 0, err
	}
	return info.State.LastSeq, nil
}

// seen returns the keys that match a filter, as a watch sees them.
func (k *KV) seen(ctx context.Context, filter string) ([]string, error) {
	w, err := k.kv.WatchFiltered(ctx, []string{filter}, jetstream.IgnoreDeletes(), jetstream.MetaOnly())
	if err != nil {
		return nil, err
	}
	defer func() { _ = w.Stop() }() // fails only when it has ended by itself
	var keys []string
	for {
		select {
		case e, ok := <-w.Updates():
			switch {
			case !ok: // cut short, which must not look like the end
				return nil, errors.Join(ctx.Err(), nats.ErrConnectionClosed)
			case e == nil: // that was all
				return keys, nil
			default:
				keys = append(keys, e.Key())
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
