package pods

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"postern.dev/postern/operator/evict"
	"postern.dev/postern/operator/selection"
)

// freeStep is the pause between two steps of Free.
const freeStep = time.Second

// Free evicts the pods of all Proxies, as if these were being deleted, and removes the copies of their
// passwords. It waits for pods until ctx ends, and leaves the rest as they are: their owners may be
// unable to make new ones. It is for the end of the operator, when nothing else evicts.
func (p *Pods) Free(ctx context.Context) error {
	objects, err := p.objects(ctx)
	if err != nil {
		return err
	}
	proxies := make([]selection.Proxy, len(objects))
	for i, o := range objects {
		proxies[i] = Summary(o)
		proxies[i].Deleting = true
	}
	left, err := p.free(ctx, proxies)
	if left > 0 {
		p.cfg.Log.Warn("pods go to a proxy that is taken away; delete them so that they are made again", "pods", left)
	}
	problems := []error{err}
	for _, one := range proxies {
		problems = append(problems, p.removeCopies(context.WithoutCancel(ctx), one.Key))
	}
	return errors.Join(problems...)
}

// free evicts until no pod goes to these proxies, or ctx ends. It returns how many do.
func (p *Pods) free(ctx context.Context, proxies []selection.Proxy) (left int, err error) {
	evictor := evict.New(evict.Config{Rules: p.cfg.Rules, Evict: p.evict, Log: p.cfg.Log})
	for {
		list := &corev1.PodList{}
		if err := p.cfg.Client.List(ctx, list); err != nil {
			if ctx.Err() != nil {
				return left, nil
			}
			return left, fmt.Errorf("list pods: %w", err)
		}
		left = 0
		for _, one := range proxies {
			left += evict.Left(p.cfg.Rules, list.Items, one.Key)
		}
		if left == 0 {
			return 0, nil
		}
		evictor.Step(ctx, time.Now(), pointers(list), proxies)
		select {
		case <-ctx.Done():
			return left, nil
		case <-time.After(freeStep):
		}
	}
}

func pointers(list *corev1.PodList) []*corev1.Pod {
	all := make([]*corev1.Pod, len(list.Items))
	for i := range list.Items {
		all[i] = &list.Items[i]
	}
	return all
}
